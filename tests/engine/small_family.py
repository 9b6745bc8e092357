"""The family of small random checkpoints that the engine's tests share, and what a running engine is to them."""

from dataclasses import dataclass

from .checkpoints import WORDS
from .driver import Engine
from .reference import Reference

SHARED = WORDS + 3
"""Ids from here on are padding."""

POISON = SHARED + 1
"""A prompt with this padding id, which is never generated, makes expert b's hidden states non-finite."""

FAMILY = """
name: small
base: ./base
references: {ref: ./ref}
experts: {a: ./a, b: ./b}
limits: {weight: {min: -2, max: 2}, total: 4}
vllm:
  dtype: float32
  max_model_len: 256
  max_num_seqs: 16
  max_num_batched_tokens: 64
  block_size: 32
  num_gpu_blocks_override: 24
  kv_cache_memory_bytes: 67108864
  disable_log_stats: false
"""


@dataclass(frozen=True)
class Running:
    """An engine, what it should compute, and what is special about it."""

    engine: Engine
    reference: Reference
    v2: bool
    speculative: bool
