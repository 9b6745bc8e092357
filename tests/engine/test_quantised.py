"""Members with schemes of their own, beside members with others and with none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .adapters import write_adapter
from .checkpoints import write_checkpoint
from .driver import PLAIN, Engine
from .quantised import quantise, round_inputs
from .reference import Reference
from .small_family import Running
from .test_composite import greedy, prompt

MEMBERS = ("base", "ref", "expert")
VLLM = """
  max_model_len: 256
  max_num_seqs: 16
  max_num_batched_tokens: 64
  block_size: 32
  kv_cache_memory_bytes: 67108864
  disable_log_stats: false
"""
SETTINGS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, -0.8, 0.8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    for seed, name in enumerate(MEMBERS):
        write_checkpoint(folder / name, seed, "qwen2" if name == "expert" else "llama", num_hidden_layers=2 + (seed == 0))
    for bits in (8, 4):
        for name in MEMBERS:
            quantise(folder / f"{name}-int{bits}", folder / name, bits)
    return folder
