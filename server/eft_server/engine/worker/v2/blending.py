"""`blend.blend` for GPUs, in Triton: members' logits are added to the rows as they come, in their own dtype.

A plain step of three members is two launches, which read each member's logits once and write one float32 row; a
filtered one is six, with one more float32 row for each filtered row. Nothing waits for the device, nothing depends on
the order in which programs run, and what a member holds in a row that does without it is not even loaded.

Shape suffixes: R rows, N rows of one member's tensor, F filtered rows, V the base's vocabulary, M members, B blocks of
ids, K vectors, W numbers of a vector (`engine.worker.columns`: M coefficients c, M delta coefficients u, the filter's
kind and its top_p).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
"""Ids that one program adds up: 75 programs for a row of 152,064 ids."""

NUCLEUS_BLOCK = 4096
"""Ids that the one program of a filtered row reads at a time."""


_ALIGNED = 4
"""Numbers of 32 bits in the 16 bytes by which Triton tells pointers apart."""


@dataclass(frozen=True)
class SharedIds:
    """The base's ids, and which of them not all members share.

    Attributes:
        size: V.
        unshared: int32, a bit for each id: the lowest of the first word is id 0's.
    """

    size: int
    unshared: torch.Tensor

    @classmethod
    def of(cls, size: int, unshared_ids: Iterable[int], device: torch.device) -> Self:
        """Prepare what does not change from step to step; ids at or beyond `size` are left out."""
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
    """Some of a step's rows: those that a member ran on, or those that have a filter.

    Attributes:
        rows_N: int32; which they are.
        places_R: int32; each row's place among them, −1 where it is not one.
    """

    rows_N: torch.Tensor
    places_R: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[int] | np.ndarray, count: int, device: torch.device) -> Self:
        """Send what the host knows, in one copy that nothing waits for.

        Args:
            rows: without repetition, 0 to `count` − 1.
            count: R.
            device: the logits'.
        """
        # Where the second begins it is aligned, or kernels would be compiled once more for maps that are not.
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
        values_NV: any floating dtype and number of ids; a row's ids lie next to each other, rows anywhere.
        rows: which rows they are of; None for all of them, in order.
    """

    member: int
    values_NV: torch.Tensor
    rows: Rows | None = None


class Blending:
    """One step's rows while their members' logits are added up: `blend.blend`'s rows, member by member.

    `add` in the family's order, then `finish`. A member has to be added with every row that reads it, others may be
    left out: a row reads those with c ≠ 0, with an expert filter those with u ≠ 0 too, with a base filter the base.
    It takes a float32 row for each row, unless the base brings one, and one more for each filtered row; what it notes
    of blocks, too, is 4 bytes a row and 8 · M a filtered row for each 2,048 ids.

    Args:
        vocabulary: the base's.
        vectors_RW: float32 of shape (R, 2M + 2).
        filtered: the rows that have a filter, or may have; the others' filters count for nothing. None for none.
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
        """How many members, from this one on, `add` may be given next.

        So the rows, what is kept for filters and the members' logits never take more than 2 · R · V floats and the
        logits of one member, but for notes of blocks, however many members there are.
        """
        if self._filtered is not None:
            return 1
        return 3 if self._total_RV is None and member == 0 else 2

    def add(self, *logits: Logits) -> None:
        """Add some members' logits, in one launch; they may be freed afterwards.

        With the first call the base comes, if it comes at all. If its logits are float32 and of all rows, the result
        takes their place in memory. One call may bring several members, for fewer passes over the rows: as
        many as there is memory for.
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
            *_apart(logits),
            self._vocabulary.size,
            self._members,
            FIRST=first,
            FILTERED=self._filtered is not None,
            COUNT=len(logits),
            WIDTH=next_power_of_2(self._members),
            BLOCK=BLOCK,
        )

    def finish(self) -> torch.Tensor:
        """Filter the rows that have a filter, and make those NaN throughout that `blend.blend` does.

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
        """Where the result goes: (R, V)."""
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
    """Score one target a row under several vectors without a filter, in two launches that write no row.

    Args:
        vocabulary: the base's.
        logits: of every member that a vector reads, all at once and in the family's order.
        vectors_KW: float32 of shape (K, 2M + 2); the filters count for nothing.
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
        *_apart(logits),
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
    """Score rows that `Blending.finish` returned, as those of vectors with a filter have to be: K is 1."""
    as_it_is_1W = torch.eye(1, 4, dtype=torch.float32, device=blended_RV.device)
    return score(vocabulary, [Logits(0, blended_RV)], as_it_is_1W, targets_R)


def _apart(logits: Sequence[Logits]) -> tuple[tuple[Any, ...], ...]:
    """The members' logits as the kernels take them: pointers, strides, numbers of ids, maps of rows, places."""
    assert all(item.values_NV.stride(-1) == 1 for item in logits)
    return (
        tuple(item.values_NV for item in logits),
        tuple(item.values_NV.stride(0) for item in logits),
        tuple(item.values_NV.shape[-1] for item in logits),
        tuple(item.rows and item.rows.places_R for item in logits),
        tuple(item.member for item in logits),
    )
