"""Sliding windows of several sizes in one family: one group of blocks holds them all."""

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec, replace_as


def keep_whole(specs: dict[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """Make the cache keep every layer's tokens if windows differ in size.

    vLLM does the same for one size beside full attention, and refuses several ("disable_hybrid_kv_cache_manager").
    Specs decide which tokens the cache keeps; the window of a layer's attention does not change.
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
    """A mixin for both runners, from which workers and the profiling of graphs get the cache's specs."""

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """VLLM's specs, adapted to windows of several sizes."""
        vllms: Any = super()
        return keep_whole(vllms.get_kv_cache_spec())
