"""Sliding windows of several sizes and no full attention: both runners tell of one kind of block, whoever asks."""

from typing import Any

import pytest
import torch
from vllm.config import DeviceConfig, VllmConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, SlidingWindowSpec
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from eft_server.engine.worker.v1.runner import CoefficientRunner
from eft_server.engine.worker.v2.runner import retyped

pytestmark = pytest.mark.engine

LAYERS = {
    f"members.{name}.model.layers.0.self_attn.attn": SlidingWindowSpec(
        block_size=16, num_kv_heads=1, head_size=32, dtype=torch.bfloat16, sliding_window=window
    )
    for name, window in {"base": 32, "ref": 48}.items()
}

RUNNERS: dict[str, tuple[type, type, Any]] = {
    "v1": (RunnerV1, CoefficientRunner, RunnerV1._init_minimal_kv_cache_for_profiling),
    "v2": (RunnerV2, retyped(RunnerV2), cudagraph_utils._init_minimal_kv_cache_for_profiling),
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_profiling_of_graphs_finds_one_kind_of_block(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner is asked for the smallest cache that graphs can be captured with, before workers are asked."""
    vllms, ours, initialise_minimal = RUNNERS[runner]
    monkeypatch.setattr(vllms, "get_kv_cache_spec", lambda _: dict(LAYERS))
    found: list[KVCacheConfig] = []
    monkeypatch.setattr(ours, "initialize_kv_cache", lambda _, config, **__: found.append(config))
    settings = VllmConfig(device_config=DeviceConfig("cpu"))
    settings.scheduler_config.disable_hybrid_kv_cache_manager = True
    settings.cache_config.kv_cache_layout = "NHD"
    settings.compilation_config.max_cudagraph_capture_size = 4
    made = ours.__new__(ours)
    vars(made).update(
        vllm_config=settings,
        cache_config=settings.cache_config,
        compilation_config=settings.compilation_config,
        max_num_reqs=4,
    )
    initialise_minimal(made)
    (group,) = found[0].kv_cache_groups
    assert set(group.layer_names) == set(LAYERS)
    assert isinstance(group.kv_cache_spec, FullAttentionSpec)
