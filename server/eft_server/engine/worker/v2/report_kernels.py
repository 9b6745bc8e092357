"""`reporting.compare` for GPUs, in Triton: two launches, which read each row and the base's once and write two numbers.

Shape suffixes: R rows, N reporting ones among them, V the base's vocabulary, B blocks of ids.
"""

import torch
from vllm.triton_utils import tl, triton
from vllm.utils.math_utils import cdiv, next_power_of_2

BLOCK = 2048
"""Ids per program."""

_LARGEST_ID = tl.constexpr(2**31 - 1)


def compare(blended_RV: torch.Tensor, rows_N: torch.Tensor, base_NV: torch.Tensor) -> torch.Tensor:
    """Compare some of the blended rows with the base's logits; see `reporting.compare`.

    Args:
        blended_RV: float32, as `Blending.finish` returns it.
        rows_N: int32; the rows.
        base_NV: any floating dtype; the base's logits for these rows, whose ids are contiguous.

    Returns:
        float32 of shape (N, 2).
    """
    assert blended_RV.stride(-1) == 1 and base_NV.stride(-1) == 1 and len(rows_N) == len(base_NV)
    count, size = base_NV.shape
    blocks = cdiv(size, BLOCK)
    sums_5NB = blended_RV.new_empty((5, count, blocks))
    firsts_2NB = rows_N.new_empty((2, count, blocks), dtype=torch.int32)
    figures_N2 = blended_RV.new_empty((count, 2))
    compare_kernel[(count, blocks)](
        sums_5NB,
        firsts_2NB,
        blended_RV,
        blended_RV.stride(0),
        rows_N,
        base_NV,
        base_NV.stride(0),
        size,
        BLOCK=BLOCK,
    )
    compared_kernel[(count,)](figures_N2, sums_5NB, firsts_2NB, blocks, BLOCKS=next_power_of_2(blocks))
    return figures_N2


@triton.jit  # type: ignore[untyped-decorator]
def compare_kernel(
    sums_ptr: tl.tensor,
    firsts_ptr: tl.tensor,
    total_ptr: tl.tensor,
    total_stride: tl.tensor,
    rows_ptr: tl.tensor,
    base_ptr: tl.tensor,
    base_stride: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Of one block of a row and of the base's: maxima, their places, masses, and the sum of exp(z) · (z − z_base)."""
    slot = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = tl.load(rows_ptr + slot).to(tl.int64)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocabulary
    z = tl.load(total_ptr + row * total_stride + ids, mask=inside, other=float("-inf"))
    base = tl.load(base_ptr + slot * base_stride + ids, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.max(z, axis=0)
    base_peak = tl.max(base, axis=0)
    masses = tl.exp(z - tl.where(peak == float("-inf"), 0.0, peak))
    base_masses = tl.exp(base - tl.where(base_peak == float("-inf"), 0.0, base_peak))
    # An id that is impossible in the row counts nothing, also where the base's logit is infinite.
    terms = tl.where(masses == 0, 0.0, masses * (z - base))
    step = tl.num_programs(0) * tl.num_programs(1)
    at = slot * tl.num_programs(1) + block
    tl.store(sums_ptr + at, peak)
    tl.store(sums_ptr + step + at, tl.sum(masses, axis=0))
    tl.store(sums_ptr + 2 * step + at, tl.sum(terms, axis=0))
    tl.store(sums_ptr + 3 * step + at, base_peak)
    tl.store(sums_ptr + 4 * step + at, tl.sum(base_masses, axis=0))
    tl.store(firsts_ptr + at, tl.min(tl.where(z == peak, ids, _LARGEST_ID), axis=0))
    tl.store(firsts_ptr + step + at, tl.min(tl.where(base == base_peak, ids, _LARGEST_ID), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def compared_kernel(
    figures_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    firsts_ptr: tl.tensor,
    blocks: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    """Combine a row's blocks: whether the first most likely id is another than the base's, and KL(row‖base)."""
    slot = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    step = tl.num_programs(0).to(tl.int64) * blocks
    at = slot * blocks + block
    peak = tl.load(sums_ptr + at, mask=there, other=float("-inf"))
    mass = tl.load(sums_ptr + step + at, mask=there, other=0.0)
    term = tl.load(sums_ptr + 2 * step + at, mask=there, other=0.0)
    base_peak = tl.load(sums_ptr + 3 * step + at, mask=there, other=float("-inf"))
    base_mass = tl.load(sums_ptr + 4 * step + at, mask=there, other=0.0)
    first = tl.load(firsts_ptr + at, mask=there, other=_LARGEST_ID)
    base_first = tl.load(firsts_ptr + step + at, mask=there, other=_LARGEST_ID)
    top = tl.max(peak, axis=0)
    base_top = tl.max(base_peak, axis=0)
    share = tl.exp(peak - top)
    total = tl.sum(mass * share, axis=0)
    base_total = tl.sum(base_mass * tl.exp(base_peak - base_top), axis=0)
    mean = tl.sum(tl.where(share == 0, 0.0, term * share), axis=0) / total
    kl = mean - (top + tl.log(total)) + (base_top + tl.log(base_total))
    own = tl.min(tl.where(peak == top, first, _LARGEST_ID), axis=0)
    of_base = tl.min(tl.where(base_peak == base_top, base_first, _LARGEST_ID), axis=0)
    tl.store(figures_ptr + 2 * slot, (own != of_base).to(tl.float32))
    tl.store(figures_ptr + 2 * slot + 1, tl.where(kl < 0, 0.0, kl))  # Rounding may take it below 0.
