"""Kernels of vLLM's CPU build: a faulty one is worked around through vLLM's registry; some exist only on some CPUs."""

from functools import cache
from typing import Any

import torch

from eft_server.engine.patches import overwrite

_EXPAND = "vllm.v1.sample.rejection_sampler.expand_kernel"


def register_cpu_kernels() -> None:
    """Replace the kernel in this process. Where Triton runs on the CPU, vLLM uses its Triton kernel, which is right.

    Also count ranks without compiling: otherwise the first request for log-probabilities would block all others for
    seconds.
    """
    from vllm.triton_utils import HAS_TRITON
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.v1.sample import sampler

    overwrite(sampler, "batched_count_greater_than", count_at_least)
    if not HAS_TRITON:
        register_kernels({_EXPAND: expand})


def count_at_least(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Count the numbers in each row that are at least a value: x (R, V), values (R, 1), the counts (R,)."""
    return (x >= values).sum(-1)


def expand(
    output: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: Any = None,
) -> None:
    """Repeat each request's value for each of its drafted tokens: temperatures, top-p and top-k.

    vLLM 0.32's CPU version converts `output` to integers, fills the copy and drops it: a float `output` keeps its
    uninitialised memory, and a sampled request with speculation is verified at a random temperature.

    Args:
        output: shape (drafted tokens,), written in place.
        values: shape (requests,).
        ends: cumulative drafted tokens, shape (requests,).
        replace_from: a value to replace (the temperature 0 of greedy requests, to avoid a division by zero).
        replace_to: its replacement.
        MAX_NUM_TOKENS: a size that only the Triton kernel needs.
    """
    replaced = torch.where(values == replace_from, replace_to, values).to(output.dtype)
    counts = ends.diff(prepend=ends.new_zeros(1)).long()
    output.copy_(replaced.repeat_interleave(counts))


@cache
def has_four_bit_kernel() -> bool:
    """Whether vLLM's kernels for this CPU support 4-bit weights: those for AVX-512 do."""
    import vllm._custom_ops  # noqa: F401  (loads the kernels)

    return hasattr(torch.ops._C, "cpu_gemm_wna16")


@cache
def adds_up_eight_bits() -> bool:
    """Whether products of 8-bit weights and activations are correct, by trying one.

    On x86 without VNNI, oneDNN adds pairs of products in 16 bits, which clips them: with large weights, every sum is
    wrong without any warning.
    """
    from vllm import _custom_ops as ops

    if not hasattr(torch.ops._C, "create_onednn_scaled_mm_handler"):
        return False
    inputs, outputs, rows, largest = 64, 32, 4, 127
    weight_KN = torch.full((outputs, inputs), largest, dtype=torch.int8).t()
    x_RK = torch.full((rows, inputs), largest, dtype=torch.int8)
    # The kernel stores the address of the weights' scales, but does not keep them alive.
    weight_scales_N1, x_scales_R1 = torch.ones(outputs, 1), torch.ones(rows, 1)
    kernel = ops.create_onednn_scaled_mm(weight_KN, weight_scales_N1, torch.float32, True, False, rows)
    sums_RN = torch.empty(rows, outputs)
    ops.onednn_scaled_mm(kernel, x_RK, sums_RN, x_scales_R1, None, None, None)
    return bool((sums_RN == inputs * largest * largest).all())
