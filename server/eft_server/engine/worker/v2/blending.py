"""`blend.blend` for GPUs, in Triton: members' logits are added to the rows as they arrive, in their dtype.

A plain step of three members needs two launches, which read each member's logits once and write one float32 row; a
filtered one needs six, with one more float32 row for each filtered row. Nothing waits for the device, nothing depends
on the order of programs, and a member's logits are not loaded for rows that do not need it.

Shape suffixes: R rows, N rows of one member's tensor, F filtered rows, V the base's vocabulary, M members, B blocks of
ids, K vectors, W numbers of a vector (`engine.worker.columns`: M coefficients c, M delta coefficients u, the filter's
kind and its top_p).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from vllm.utils.math_utils import cdiv, next_power_of_2
from vllm.utils.torch_utils import async_tensor_h2d

from eft_server.engine.worker.rows import RowScores
from eft_server.engine.worker.v2.blend_kernels import (
    add_kernel,
    filter_kernel,
    finish_kernel,
    nucleus_kernel,
    score_kernel,
    scored_kernel,
)

BLOCK = 2048
"""Ids per program: 75 programs for a row of 152,064 ids."""

NUCLEUS_BLOCK = 4096
"""Ids that the program of a filtered row reads at a time."""


_ALIGNED = 4
"""32-bit numbers in 16 bytes, the alignment by which Triton specialises kernels."""


@dataclass(frozen=True)
class SharedIds:
    """The base's ids, and which of them are not shared by all members.

    Attributes:
        size: V.
        unshared: int32, a bit for each id: the lowest bit of the first word is for id 0.
    """

    size: int
    unshared: torch.Tensor

    @classmethod
    def of(cls, size: int, unshared_ids: Iterable[int], device: torch.device) -> Self:
        """Build it once for all steps; ids at or beyond `size` are left out."""
        flags_V = np.zeros(cdiv(size, 32) * 32, dtype=bool)
        flags_V[[token for token in unshared_ids if token < size]] = True
        words = np.packbits(flags_V, bitorder="little").view(np.int32)
        return cls(size, torch.from_numpy(words).to(device))

    @property
    def blocks(self) -> int:
        """B."""
        return cdiv(self.size, BLOCK)


@dataclass(frozen=True)
class Rows:
    """Some of a step's rows: those on which a member ran, or those with a filter.

    Attributes:
        rows_N: int32; the rows.
        places_R: int32; each row's place among them, −1 if it is not one of them.
    """

    rows_N: torch.Tensor
    places_R: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[int] | np.ndarray, count: int, device: torch.device) -> Self:
        """Copy them to the device, in one asynchronous copy.

        Args:
            rows: distinct rows, 0 to `count` − 1.
            count: R.
            device: the logits' device.
        """
        # The second part is aligned: otherwise kernels would be compiled again for unaligned maps.
        start = -(-len(rows) // _ALIGNED) * _ALIGNED
        both = np.full(start + count, -1, dtype=np.int32)
        both[: len(rows)] = rows
        both[start + both[: len(rows)]] = np.arange(len(rows))
        sent = async_tensor_h2d(both, device=device)
        return cls(sent[: len(rows)], sent[start:])


@dataclass(frozen=True)
class Logits:
    """One member's logits.

    Attributes:
        member: its place in the family; the base's is 0.
        values_NV: any floating dtype and number of ids; a row's ids are contiguous, with any row stride.
        rows: their rows; None for all rows, in order.
    """

    member: int
    values_NV: torch.Tensor
    rows: Rows | None = None

    def copy(self) -> Self:
        """The same with a copy of the values."""
        return replace(self, values_NV=self.values_NV.clone())


class Blending:
    """The rows of one step while members' logits are added: the result of `blend.blend`, member by member.

    Call `add` in the family's order, then `finish`. A member has to be added with every row that reads it; other rows
    are optional. A row reads members with c ≠ 0, with an expert filter also those with u ≠ 0, with a base filter the
    base. It needs a float32 row for each row, unless the base's logits provide it, and one more for each filtered row;
    also, for each 2,048 ids, 4 bytes per row and 8 · M per filtered row.

    Args:
        vocabulary: the base's ids.
        vectors_RW: float32 of shape (R, 2M + 2).
        filtered: the rows that have or may have a filter; filters of other rows are ignored. None for no rows.
    """

    def __init__(self, vocabulary: SharedIds, vectors_RW: torch.Tensor, filtered: Rows | None = None) -> None:
        assert vectors_RW.dtype == torch.float32 and vectors_RW.stride(-1) == 1
        self._vocabulary = vocabulary
        self._vectors_RW = vectors_RW
        self._members = (vectors_RW.shape[-1] - 2) // 2
        self._filtered = filtered if filtered is not None and len(filtered.rows_N) else None
        self._total_RV: torch.Tensor | None = None
        self._last = -1
        self._peaks_RB = self._floats(len(vectors_RW), vocabulary.blocks)
        count = 0 if self._filtered is None else len(self._filtered.rows_N)
        self._extra_FV = self._floats(count, vocabulary.size)
        self._peaks_FMB = self._floats(count, self._members, vocabulary.blocks)
        self._masses_FMB = torch.empty_like(self._peaks_FMB)

    def at_once(self, member: int) -> int:
        """The number of members, from this one on, that the next `add` may take.

        It limits the rows, the filters' data and the members' logits to 2 · R · V floats and the logits of one member
        (plus the blocks' values), for any number of members.
        """
        if self._filtered is not None:
            return 1
        return 3 if self._total_RV is None and member == 0 else 2

    def add(self, *logits: Logits) -> None:
        """Add some members' logits, in one launch; they may be freed afterwards.

        The base, if it is added, has to be in the first call. If its logits are float32 and of all rows, the result
        overwrites them. One call may add several members (see `at_once`), for fewer passes over the rows.
        """
        order = [self._last, *(item.member for item in logits)]
        assert order == sorted(set(order)), "members come in the family's order, each of them once"
        self._last = order[-1]
        first = self._total_RV is None
        total_RV = self._total_RV = self._start(logits) if self._total_RV is None else self._total_RV
        if not len(total_RV) or not (first or logits):
            return
        add_kernel[(len(total_RV), self._vocabulary.blocks)](
            total_RV,
            total_RV.stride(0),
            self._peaks_RB,
            self._extra_FV,
            self._peaks_FMB,
            self._masses_FMB,
            self._filtered and self._filtered.places_R,
            self._vectors_RW,
            self._vectors_RW.stride(0),
            self._vocabulary.unshared,
            *_kernel_arguments(logits),
            self._vocabulary.size,
            self._members,
            FIRST=first,
            FILTERED=self._filtered is not None,
            COUNT=len(logits),
            WIDTH=next_power_of_2(self._members),
            BLOCK=BLOCK,
        )

    def finish(self) -> torch.Tensor:
        """Filter the rows that have a filter, and make broken rows NaN throughout, as `blend.blend` does.

        Returns:
            float32 logits of shape (R, V).
        """
        if self._total_RV is None:
            self.add()
        assert self._total_RV is not None
        total_RV, vocabulary = self._total_RV, self._vocabulary
        if self._filtered is not None:
            self._filter(total_RV, self._filtered.rows_N)
        if len(total_RV):
            finish_kernel[(len(total_RV),)](
                total_RV,
                total_RV.stride(0),
                self._peaks_RB,
                vocabulary.size,
                vocabulary.blocks,
                BLOCKS=next_power_of_2(vocabulary.blocks),
                BLOCK=BLOCK,
            )
        return total_RV

    def _floats(self, *shape: int) -> torch.Tensor:
        return self._vectors_RW.new_empty(shape)

    def _start(self, logits: Sequence[Logits]) -> torch.Tensor:
        """The tensor for the result: (R, V)."""
        rows, size = len(self._vectors_RW), self._vocabulary.size
        if not logits or logits[0].member or logits[0].rows is not None:
            return self._floats(rows, size)
        base_RV = logits[0].values_NV
        assert base_RV.shape == (rows, size)
        return base_RV if base_RV.dtype == torch.float32 else self._floats(rows, size)

    def _filter(self, total_RV: torch.Tensor, rows_F: torch.Tensor) -> None:
        vocabulary, count = self._vocabulary, len(rows_F)
        least_F, shift_F = self._floats(2, count)
        row = (total_RV, total_RV.stride(0), self._peaks_RB, self._extra_FV, rows_F)
        vector = (self._vectors_RW, self._vectors_RW.stride(0), vocabulary.size, self._members)
        nucleus_kernel[(count,)](
            least_F,
            shift_F,
            *row,
            self._peaks_FMB,
            self._masses_FMB,
            *vector,
            vocabulary.blocks,
            WIDTH=next_power_of_2(self._members),
            BLOCKS=next_power_of_2(vocabulary.blocks),
            BLOCK=NUCLEUS_BLOCK,
            num_warps=16,
        )
        filter_kernel[(count, vocabulary.blocks)](least_F, shift_F, *row, *vector, BLOCK=BLOCK)


def score(
    vocabulary: SharedIds, logits: Sequence[Logits], vectors_KW: torch.Tensor, targets_R: torch.Tensor
) -> RowScores:
    """Score one target per row under several vectors without a filter, in two launches that do not write rows.

    Args:
        vocabulary: the base's ids.
        logits: those of every member that a vector reads, all at once and in the family's order.
        vectors_KW: float32 of shape (K, 2M + 2); filters are ignored.
        targets_R: int64, 0 to V − 1.
    """
    rows, vectors, blocks = len(targets_R), len(vectors_KW), vocabulary.blocks
    assert vectors_KW.stride(-1) == 1 and [item.member for item in logits] == sorted(
        item.member for item in logits
    )
    chosen_KR, likeliest_KR = vectors_KW.new_empty((2, vectors, rows))
    found = RowScores(chosen_KR, likeliest_KR, targets_R.new_empty((vectors, rows), dtype=torch.int32))
    peaks_RKB, masses_RKB = vectors_KW.new_empty((2, rows, vectors, blocks))
    likelier_RKB = targets_R.new_empty((rows, vectors, blocks), dtype=torch.int32)
    if not rows or not vectors:
        return found
    members = (vectors_KW.shape[-1] - 2) // 2
    score_kernel[(rows, blocks)](
        found.chosen,
        peaks_RKB,
        masses_RKB,
        likelier_RKB,
        targets_R,
        vectors_KW,
        vectors_KW.stride(0),
        vocabulary.unshared,
        *_kernel_arguments(logits),
        vocabulary.size,
        members,
        vectors,
        COUNT=len(logits),
        WIDTH=next_power_of_2(members),
        BLOCK=BLOCK,
    )
    scored_kernel[(rows, vectors)](
        found.chosen,
        found.likeliest,
        found.ranks,
        peaks_RKB,
        masses_RKB,
        likelier_RKB,
        blocks,
        BLOCKS=next_power_of_2(blocks),
    )
    return found


def score_blended(vocabulary: SharedIds, blended_RV: torch.Tensor, targets_R: torch.Tensor) -> RowScores:
    """Score rows that `Blending.finish` returned, which vectors with a filter need: K is 1."""
    as_it_is_1W = torch.eye(1, 4, dtype=torch.float32, device=blended_RV.device)
    return score(vocabulary, [Logits(0, blended_RV)], as_it_is_1W, targets_R)


def _kernel_arguments(logits: Sequence[Logits]) -> tuple[tuple[Any, ...], ...]:
    """The members' logits as kernel arguments: pointers, strides, numbers of ids, maps of rows, places."""
    assert all(item.values_NV.stride(-1) == 1 for item in logits)
    return (
        tuple(item.values_NV for item in logits),
        tuple(item.values_NV.stride(0) for item in logits),
        tuple(item.values_NV.shape[-1] for item in logits),
        tuple(item.rows and item.rows.places_R for item in logits),
        tuple(item.member for item in logits),
    )
