"""From the members' hidden states to blended logits on GPUs, with kernels; on CPUs, `rows` does this.

Nothing here waits for the device: the host knows which rows need which members. Shape suffixes: R rows, M members, H a
member's hidden size, V the base's vocabulary, K vectors, W numbers of a vector.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from eft_server.engine.worker.columns import counting, is_filtered
from eft_server.engine.worker.rows import Head, RowScores
from eft_server.engine.worker.v2.blending import Blending, Logits, Rows, SharedIds, score, score_blended
from eft_server.engine.worker.v2.report_kernels import compare


@dataclass(frozen=True)
class Needs:
    """The needs of rows, as far as the host knows.

    Attributes:
        counting_RM: bool; which members contribute to a row.
        filtered_R: bool; whether it has a filter, or may have one.
        reporting_R: bool; whether it is compared with the base's; None for no row.
    """

    counting_RM: np.ndarray
    filtered_R: np.ndarray
    reporting_R: np.ndarray | None = None

    @cached_property
    def running_RM(self) -> np.ndarray:
        """The members whose heads run on a row: those that contribute, and the base if it is compared."""
        if self.reporting_R is None:
            return self.counting_RM
        return np.column_stack([self.counting_RM[:, 0] | self.reporting_R, self.counting_RM[:, 1:]])

    @classmethod
    def alike(
        cls, counting_M: Sequence[bool], rows: int, *, filtered: bool, reporting: bool = False
    ) -> "Needs":
        """The same needs for all rows."""
        reporting_R = np.full(rows, True) if reporting else None
        return cls(np.tile(np.array(counting_M), (rows, 1)), np.full(rows, filtered), reporting_R)


def usual_needs(members: int) -> Iterator[Needs]:
    """The needs of common steps: one member, an expert with the base and its reference, all, and mixed rows."""
    alone = np.eye(members, dtype=bool)
    scaled = [alone[[0, 1, expert]].any(axis=0) for expert in range(min(2, members - 1), members)]
    alike = [np.tile(needed_M, (2, 1)) for needed_M in (*alone, *scaled, np.ones(members, dtype=bool))]
    # The base in both rows and all others in one of them; and one member in each.
    differing = [np.stack([alone[0], needed_M]) for needed_M in (*scaled, np.ones(members, dtype=bool))]
    differing += [np.stack([alone[-1], needed_M]) for needed_M in (alone[0], *scaled)]
    for counting_RM in (*alike, *differing):
        for filtered in (False, True):
            yield Needs(counting_RM, np.full(2, filtered))
    for reporting in ([True, True], [True, False]):
        yield Needs(np.stack([alone[-1]] * 2), np.full(2, False), np.array(reporting))


class KernelBlender:
    """Blends rows of a family.

    Args:
        heads_M: the members' heads, the base's first.
        vocabulary: the base's ids.

    Attributes:
        needs: gives the needs of a number of rows; Model Runner V2 sets it before it computes logits.
    """

    needs: Callable[[int], Needs]

    def __init__(self, heads_M: Sequence[Head], vocabulary: SharedIds) -> None:
        self._heads_M, self._vocabulary = heads_M, vocabulary
        self._figures: torch.Tensor | None = None

    def take_figures(self) -> torch.Tensor | None:
        """The comparison of the rows that were reported last, as `reporting.compare` returns it, on the device."""
        figures, self._figures = self._figures, None
        return figures

    def blend(self, hidden_M: Sequence[torch.Tensor], vector_RW: torch.Tensor) -> torch.Tensor | None:
        """Blend rows as `blend.blend` does: float32 (R, V), or None off the first rank."""
        return self._blend(hidden_M, vector_RW, self.needs(len(vector_RW)))

    def _blend(
        self, hidden_M: Sequence[torch.Tensor], vector_RW: torch.Tensor, needs: Needs
    ) -> torch.Tensor | None:
        """Blend rows with known needs.

        The members' logits are computed one or two at a time, so that not all of them are in memory at once.
        """
        device = vector_RW.device
        filtered = np.flatnonzero(needs.filtered_R)
        rows = Rows.of(filtered, len(vector_RW), device) if len(filtered) else None
        blending = Blending(self._vocabulary, vector_RW, rows)
        members = np.flatnonzero(needs.running_RM.any(axis=0)).tolist()
        compared = None if needs.reporting_R is None else _Compared.of(needs.reporting_R, device)
        whole = True
        while members:
            at_once = blending.at_once(members[0])
            whole &= self._add(blending, hidden_M, needs, members[:at_once], compared)
            members = members[at_once:]
        if not whole:
            return None
        blended_RV = blending.finish()
        if compared is not None:
            self._figures = compared.figures(blended_RV)
        return blended_RV

    def _add(
        self,
        blending: Blending,
        hidden_M: Sequence[torch.Tensor],
        needs: Needs,
        members: Sequence[int],
        compared: "_Compared | None",
    ) -> bool:
        """Add some members and free their logits; False off the first rank, which has none."""
        logits = self._logits(hidden_M, needs.running_RM, members)
        if logits is None:
            return False
        if compared is not None and not members[0]:
            compared.keep(logits[0])
        blending.add(*logits)
        return True

    def score(
        self, hidden_M: Sequence[torch.Tensor], vectors: Sequence[Sequence[float]], targets_R: torch.Tensor
    ) -> RowScores | None:
        """Score one target per row under several vectors, ignoring the extra columns; None off the first rank.

        Args:
            hidden_M: the members' hidden states, (R, H) each.
            vectors: K of them, W numbers each.
            targets_R: int64, 0 to V − 1.
        """
        of_each: dict[int, RowScores | None] = {}
        for place, vector in enumerate(vectors):
            if is_filtered(vector):  # Its rows have to be materialised.
                needs = Needs.alike(counting(vector), len(targets_R), filtered=True)
                vector_1W = _sent([vector], targets_R.device)
                blended_RV = self._blend(hidden_M, vector_1W.repeat(len(targets_R), 1), needs)
                of_each[place] = (
                    None if blended_RV is None else score_blended(self._vocabulary, blended_RV, targets_R)
                )
        plain = [place for place in range(len(vectors)) if place not in of_each]
        if plain:
            found = self._scores(hidden_M, [vectors[place] for place in plain], targets_R)
            for index, place in enumerate(plain):
                of_each[place] = None if found is None else found.of(index)
        scores = [one for _, one in sorted(of_each.items()) if one is not None]
        return RowScores.together(scores) if len(scores) == len(vectors) else None

    def under(
        self, hidden_M: Sequence[torch.Tensor], vectors: Sequence[Sequence[float]]
    ) -> Callable[[Sequence[float]], torch.Tensor] | None:
        """Blend the same rows by several vectors, ignoring the extra columns; the heads run once.

        Args:
            hidden_M: the members' hidden states, (R, H) each.
            vectors: W numbers each.

        Returns:
            From a vector to float32 rows (R, V); the vector's members must be among those of `vectors`. None off the
            first rank.
        """
        rows, device = len(hidden_M[0]), hidden_M[0].device
        counted_M = np.any([counting(vector) for vector in vectors], axis=0)
        every_RM = np.ones((rows, len(counted_M)), dtype=bool)
        logits = self._logits(hidden_M, every_RM, np.flatnonzero(counted_M).tolist())
        if logits is None:
            return None

        def blended(vector: Sequence[float]) -> torch.Tensor:
            counts_M = counting(vector)
            filtered = Rows.of(range(rows), rows, device) if is_filtered(vector) else None
            blending = Blending(self._vocabulary, _sent([vector], device).repeat(rows, 1), filtered)
            own = [item for item in logits if counts_M[item.member]]
            while own:
                at_once = blending.at_once(own[0].member)
                # The result overwrites the base's logits, which the next vector needs again.
                blending.add(*(item if item.member else item.copy() for item in own[:at_once]))
                own = own[at_once:]
            return blending.finish()

        return blended

    def _scores(
        self,
        hidden_M: Sequence[torch.Tensor],
        vectors: Sequence[Sequence[float]],
        targets_R: torch.Tensor,
    ) -> RowScores | None:
        """The scores under vectors without filters, for which rows are not written."""
        counted_M = np.any([counting(vector) for vector in vectors], axis=0)
        every_RM = np.ones((len(targets_R), len(counted_M)), dtype=bool)
        logits = self._logits(hidden_M, every_RM, np.flatnonzero(counted_M).tolist())
        if logits is None:
            return None
        return score(self._vocabulary, logits, _sent(vectors, targets_R.device), targets_R)

    def _logits(
        self, hidden_M: Sequence[torch.Tensor], counting_RM: np.ndarray, members: Sequence[int]
    ) -> list[Logits] | None:
        """Logits of some members, for the rows that need them; None off the first rank, where all heads run as well."""
        found = [self._logits_of(member, hidden_M[member], counting_RM[:, member]) for member in members]
        present = [item for item in found if item is not None]
        return present if len(present) == len(found) else None

    def _logits_of(self, member: int, hidden_RH: torch.Tensor, counts_R: np.ndarray) -> Logits | None:
        if counts_R.all():
            values_NV, rows = self._heads_M[member](hidden_RH), None
        else:
            rows = Rows.of(np.flatnonzero(counts_R), len(counts_R), hidden_RH.device)
            values_NV = self._heads_M[member](hidden_RH[rows.rows_N.long()])
        return None if values_NV is None else Logits(member, values_NV, rows)


@dataclass
class _Compared:
    """The rows to compare with the base's, which are kept, since the blend may overwrite them.

    Attributes:
        rows_N: int32; the rows.
        base_NV: the base's logits there, once they are known.
    """

    rows_N: torch.Tensor
    base_NV: torch.Tensor | None = None

    @classmethod
    def of(cls, reporting_R: np.ndarray, device: torch.device) -> "_Compared":
        return cls(async_tensor_h2d(np.flatnonzero(reporting_R).astype(np.int32), device=device))

    def keep(self, base: Logits) -> None:
        places_N = self.rows_N if base.rows is None else base.rows.places_R.index_select(0, self.rows_N)
        self.base_NV = base.values_NV.index_select(0, places_N)

    def figures(self, blended_RV: torch.Tensor) -> torch.Tensor:
        assert self.base_NV is not None, "the base's head runs on the rows that are compared"
        return compare(blended_RV, self.rows_N, self.base_NV)


def _sent(vectors: Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    """Vectors on the device, copied asynchronously: float32 (K, W)."""
    return async_tensor_h2d(np.array(vectors, dtype=np.float32), device=device)
