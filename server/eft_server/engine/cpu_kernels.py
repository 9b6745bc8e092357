"""A kernel of vLLM's CPU build that is wrong, mended through vLLM's own registry."""

from typing import Any

import torch

_EXPAND = "vllm.v1.sample.rejection_sampler.expand_kernel"


def register_cpu_kernels() -> None:
    """Replace the kernel in this process. Where Triton runs on the CPU, vLLM's own is in use, and right."""
    from vllm.triton_utils import HAS_TRITON
    from vllm.triton_utils.dispatcher import register_kernels

    if not HAS_TRITON:
        register_kernels({_EXPAND: expand})


def expand(
    output: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: Any = None,
) -> None:
    """Repeat each request's value for each of its drafted tokens: temperatures, top-p and top-k.

    vLLM 0.32's CPU version converts `output` to integers, fills the copy and drops it: a float `output` keeps what
    was in memory, and a sampled request under speculation is verified at a random temperature.

    Args:
        output: shape (drafted tokens,), written in place.
        values: shape (requests,).
        ends: cumulative drafted tokens, shape (requests,).
        replace_from: a value to replace (the temperature 0 of greedy requests, by which nothing may be divided).
        replace_to: what by.
        MAX_NUM_TOKENS: a size that only the Triton kernel needs.
    """
    replaced = torch.where(values == replace_from, replace_to, values).to(output.dtype)
    counts = ends.diff(prepend=ends.new_zeros(1)).long()
    output.copy_(replaced.repeat_interleave(counts))
