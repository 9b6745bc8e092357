"""Extra columns that carry a request's coefficients to the rows of its logits: bit-cast, beside the hidden states.

vLLM selects rows of the hidden states for sampling, for draft verification and for prompt log-probabilities, in any
order. Extra columns always arrive with the right row.

A *vector* of coefficients holds everything for a row: one coefficient per member, and for its filter one delta
coefficient per member, the filter's kind and its top_p (`equation.Filters`), 2M + 2 numbers.

Shape suffixes: T tokens, R rows, M members, W a vector's numbers, H hidden size, C columns of all of these.
"""

from collections.abc import Sequence

import torch

from eft_server.behaviour.coefficients import BASE_FILTER
from eft_server.behaviour.equation import Filters


def vector_width(members: int) -> int:
    """W: the number of values in a vector."""
    return 2 * members + 2


def is_filtered(vector: Sequence[float]) -> bool:
    """Whether a vector has a filter, which takes time."""
    return vector[-2] != 0


def counting(vector: Sequence[float]) -> tuple[bool, ...]:
    """By member, whether it contributes to a row with this vector (W numbers)."""
    members = (len(vector) - 2) // 2
    coefficients, delta = vector[:members], vector[members : 2 * members]
    counted = [c != 0 or u != 0 for c, u in zip(coefficients, delta, strict=True)]
    return (counted[0] or vector[-2] == BASE_FILTER, *counted[1:])


def counting_rows(coefficients_RM: torch.Tensor, filters: Filters) -> torch.Tensor:
    """The same for rows: bool (R, M)."""
    counted_RM = (coefficients_RM != 0) | (filters.delta_RM != 0)
    counted_RM[:, 0] |= filters.kind_R == BASE_FILTER
    return counted_RM


def columns(sizes_M: Sequence[int], dtype: torch.dtype) -> int:
    """C: the number of columns of a dtype that hold the members' hidden states and a vector."""
    return sum(sizes_M) + vector_width(len(sizes_M)) * (torch.float32.itemsize // dtype.itemsize)


def attach(columns_TC: torch.Tensor, vector_TW: torch.Tensor) -> None:
    """Write the float32 vectors after the members' hidden states."""
    riders = vector_TW.view(columns_TC.dtype)
    columns_TC[:, -riders.shape[-1] :] = riders


def detach(columns_RC: torch.Tensor, sizes_M: Sequence[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Split any rows into the members' hidden states and float32 vectors (R, W)."""
    per_float = torch.float32.itemsize // columns_RC.dtype.itemsize
    parts = columns_RC.split([*sizes_M, vector_width(len(sizes_M)) * per_float], dim=-1)
    return parts[:-1], parts[-1].contiguous().view(torch.float32)


def split_vectors(vector_RW: torch.Tensor) -> tuple[torch.Tensor, Filters]:
    """Split float32 vectors for `blend`: coefficients (R, M) and filters."""
    members = (vector_RW.shape[-1] - 2) // 2
    coefficients_RM, delta_RM, kind_R1, top_p_R1 = vector_RW.split([members, members, 1, 1], dim=-1)
    return coefficients_RM, Filters(delta_RM, kind_R1.squeeze(-1), top_p_R1.squeeze(-1))
