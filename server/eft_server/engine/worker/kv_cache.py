"""Sliding windows of several sizes in one family: one group of blocks that holds them all."""

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec, replace_as


def keep_whole(specs: dict[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """Have the cache keep every layer's tokens where windows differ in size.

    vLLM does the same for one size beside full attention, and refuses several ("disable_hybrid_kv_cache_manager").
    Specs say what the cache keeps; what a layer looks at is the layer's own to know, and stays as it is.
    """
    sizes = {spec.sliding_window for spec in specs.values() if isinstance(spec, SlidingWindowSpec)}
    if len(sizes) < 2:
        return specs
    return {name: _whole(spec) for name, spec in specs.items()}


def _whole(spec: KVCacheSpec) -> KVCacheSpec:
    if not isinstance(spec, SlidingWindowSpec):
        return spec
    return replace_as(spec, FullAttentionSpec, drop=("extra_retained_tokens",), sliding_window=None)


class WholeWindows:
    """What both runners add to vLLM's: workers ask the runner for its specs, and so does the profiling of graphs."""

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """What vLLM's says, fit for windows of several sizes."""
        vllms: Any = super()
        return keep_whole(vllms.get_kv_cache_spec())
