"""From the members' hidden states to blended logits, with each member's head only on the rows that need it.

This is for CPUs, where inspecting a number is cheap; `v2.rows` is for GPUs.

Shape suffixes: R rows, N some of them, M members, H a member's hidden size, V the base's vocabulary, K vectors, W
numbers of a vector, U ids that not all members share.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from eft_server.behaviour.equation import Filters, blend
from eft_server.engine.worker.columns import counting, counting_rows, is_filtered, split_vectors
from eft_server.engine.worker.measures.reporting import compare

_LOGITS_AT_ONCE = 1 << 24
"""Logits of each member at a time: 64 MiB, for any vocabulary."""


def rows_at_once(vocabulary: int) -> int:
    """Rows to blend at a time: all of a step's samples, but a prompt's log-probabilities in parts."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)


Head = Callable[[torch.Tensor], torch.Tensor | None]
"""From a member's hidden states (N, H) to its logits, or None off the first rank."""


@dataclass(frozen=True)
class RowScores:
    """The scores of each row's target under each vector, all of shape (K, R).

    Attributes:
        chosen: float32; the target's log-probability: −inf if it is impossible, NaN if the row is broken.
        likeliest: float32; the log-probability of the most likely token.
        ranks: int32; rank of the target, 1 = most likely.
    """

    chosen: torch.Tensor
    likeliest: torch.Tensor
    ranks: torch.Tensor

    def of(self, vector: int) -> "RowScores":
        """The scores under one vector: (1, R)."""
        one = slice(vector, vector + 1)
        return RowScores(self.chosen[one], self.likeliest[one], self.ranks[one])

    @classmethod
    def together(cls, scores: Sequence["RowScores"]) -> "RowScores":
        """Join the scores under several vectors, in order."""
        fields = [(one.chosen, one.likeliest, one.ranks) for one in scores]
        return cls(*(torch.cat(values) for values in zip(*fields, strict=True)))


@dataclass(frozen=True)
class _Logits:
    """A member's logits for the rows that need it.

    Attributes:
        logits_NV: any floating dtype.
        place_R: each row's place among them; None if they have all rows.
    """

    logits_NV: torch.Tensor
    place_R: torch.Tensor | None = None

    def at(self, rows_N: torch.Tensor) -> "_Logits":
        """The logits of some of the rows."""
        return _Logits(self.logits_NV[rows_N if self.place_R is None else self.place_R[rows_N]])


class RowBlender:
    """Blends rows of a family.

    Args:
        heads_M: the members' heads, the base's first.
        unshared_U: as for `blend.blend`.
        vocabulary: V.

    Attributes:
        reporting_R: bool; of the rows that are blended next, those to compare with the base; None for none of them.
    """

    reporting_R: torch.Tensor | None = None

    def __init__(self, heads_M: Sequence[Head], unshared_U: torch.Tensor, vocabulary: int) -> None:
        self._heads_M, self._unshared_U, self._vocabulary = heads_M, unshared_U, vocabulary
        self._figures: list[torch.Tensor] = []

    def take_figures(self) -> torch.Tensor | None:
        """The comparison of those rows, as `reporting.compare` returns it; None off the first rank."""
        figures, self._figures = self._figures, []
        return torch.cat(figures) if figures else None

    def blend(self, hidden_M: Sequence[torch.Tensor], vector_RW: torch.Tensor) -> torch.Tensor | None:
        """Blend rows as `blend.blend` does: float32 (R, V), or None off the first rank."""
        at_once = rows_at_once(self._vocabulary)
        reporting_R, self.reporting_R = self.reporting_R, None
        if len(vector_RW) <= at_once:
            return self._blend_all(hidden_M, vector_RW, reporting_R)
        blended_RV = torch.empty((len(vector_RW), self._vocabulary), dtype=torch.float32)
        whole = True
        for start in range(0, len(vector_RW), at_once):
            part = slice(start, start + at_once)
            own_R = None if reporting_R is None or not reporting_R[part].any() else reporting_R[part]
            found_NV = self._blend_all([hidden_RH[part] for hidden_RH in hidden_M], vector_RW[part], own_R)
            whole &= found_NV is not None
            if found_NV is not None:
                blended_RV[part] = found_NV
        return blended_RV if whole else None

    def _blend_all(
        self, hidden_M: Sequence[torch.Tensor], vector_RW: torch.Tensor, reporting_R: torch.Tensor | None
    ) -> torch.Tensor | None:
        if (
            len(vector_RW)
            and bool((vector_RW == vector_RW[0]).all())
            and (reporting_R is None or reporting_R.all() or counting(vector_RW[0].tolist())[0])
        ):
            return self._blend_alike(hidden_M, vector_RW, reporting_R)
        coefficients_RM, filters = split_vectors(vector_RW)
        counted_RM = counting_rows(coefficients_RM, filters)
        logits_M = self._logits(hidden_M, _with_base(counted_RM, reporting_R))
        if logits_M is None:
            return None
        blended_RV = self._blend_groups(logits_M, coefficients_RM, filters, counted_RM)
        if reporting_R is not None and (base := logits_M[0]) is not None:
            self._compare(blended_RV, base, reporting_R)
        return blended_RV

    def _compare(self, blended_RV: torch.Tensor, base: _Logits, reporting_R: torch.Tensor) -> None:
        rows_N = reporting_R.nonzero().squeeze(-1)
        self._figures.append(compare(blended_RV[rows_N], base.at(rows_N).logits_NV))

    def _blend_groups(
        self,
        logits_M: Sequence[_Logits | None],
        coefficients_RM: torch.Tensor,
        filters: Filters,
        counted_RM: torch.Tensor,
    ) -> torch.Tensor:
        groups = list(_groups(counted_RM))
        if len(groups) == 1:
            return self._blend(logits_M, coefficients_RM, filters, groups[0][0])
        blended_RV = torch.empty((len(counted_RM), self._vocabulary), dtype=torch.float32)
        for members, rows_N in groups:
            own_M = [None if logits is None else logits.at(rows_N) for logits in logits_M]
            blended_RV[rows_N] = self._blend(own_M, coefficients_RM[rows_N], filters.at(rows_N), members)
        return blended_RV

    def _blend_alike(
        self, hidden_M: Sequence[torch.Tensor], vector_RW: torch.Tensor, reporting_R: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Rows with the same vector, the usual step: for small models, grouping rows takes longer than the blend."""
        counted_M = counting(numbers := vector_RW[0].tolist())
        running_M = (counted_M[0] or reporting_R is not None, *counted_M[1:])
        found = [
            head(hidden_RH) if runs else None
            for head, hidden_RH, runs in zip(self._heads_M, hidden_M, running_M, strict=True)
        ]
        if any(runs and logits_RV is None for runs, logits_RV in zip(running_M, found, strict=True)):
            return None
        logits_M = [None if logits_RV is None else _Logits(logits_RV) for logits_RV in found]
        blended_RV = self._blend_by(numbers, logits_M, len(vector_RW))
        if reporting_R is not None and (base := logits_M[0]) is not None:
            self._compare(blended_RV, base, reporting_R)
        return blended_RV

    def _blend_by(
        self, vector: Sequence[float], logits_M: Sequence[_Logits | None], rows: int
    ) -> torch.Tensor:
        """Blend rows that all have one vector: what `blend.blend` does, without a filter in fewer passes."""
        if is_filtered(vector):
            vector_RW = torch.tensor([vector], dtype=torch.float32).expand(rows, -1)
            members = tuple(place for place, counts in enumerate(counting(vector)) if counts)
            return self._blend(logits_M, *split_vectors(vector_RW), members)
        terms = {
            place: logits.logits_NV
            for place, (number, logits) in enumerate(zip(vector, logits_M, strict=False))
            if number and logits is not None
        }
        if terms.keys() == {0} and vector[0] == 1:
            return _nan_if_broken(terms[0][:, : self._vocabulary].float().contiguous())
        total_RV = torch.zeros((rows, self._vocabulary))
        for place, logits_RV in terms.items():
            width = min(self._vocabulary, logits_RV.shape[-1])
            total_RV[:, :width].add_(logits_RV[:, :width], alpha=vector[place])
        return _nan_if_broken(total_RV.index_fill_(-1, self._unshared_U, -torch.inf))

    def score(
        self, hidden_M: Sequence[torch.Tensor], vectors: Sequence[Sequence[float]], targets_R: torch.Tensor
    ) -> RowScores | None:
        """Score one target per row under several vectors, ignoring the extra columns; None off the first rank.

        Args:
            hidden_M: the members' hidden states, (R, H) each.
            vectors: K of them, W numbers each.
            targets_R: int64, 0 to V − 1.
        """
        blended = self.under(hidden_M, vectors)
        if blended is None:
            return None
        return RowScores.together([scored_rows(blended(vector), targets_R) for vector in vectors])

    def under(
        self, hidden_M: Sequence[torch.Tensor], vectors: Sequence[Sequence[float]]
    ) -> Callable[[Sequence[float]], torch.Tensor] | None:
        """Blend the same rows by several vectors, ignoring the extra columns; the heads run once.

        Args:
            hidden_M: the members' hidden states, (R, H) each.
            vectors: W numbers each.

        Returns:
            From a vector, one of these or with no more members than they have, to float32 rows (R, V). None off the
            first rank.
        """
        counted_KM = [counting(vector) for vector in vectors]
        counted_M = torch.tensor(counted_KM).any(dim=0)
        rows = len(hidden_M[0])
        logits_M = self._logits(hidden_M, counted_M.expand(rows, -1))
        if logits_M is None:
            return None

        def blended(vector: Sequence[float]) -> torch.Tensor:
            return self._blend_by(vector, logits_M, rows)

        return blended

    def _logits(
        self, hidden_M: Sequence[torch.Tensor], counted_RM: torch.Tensor
    ) -> list[_Logits | None] | None:
        """Every member's logits, None for one that no row needs; or None off the first rank."""
        found: list[_Logits | None] = []
        for head, hidden_RH, counted_R in zip(self._heads_M, hidden_M, counted_RM.T, strict=True):
            rows = int(counted_R.sum())
            if not rows:
                found.append(None)
                continue
            everywhere = rows == len(counted_R)
            logits_NV = head(hidden_RH if everywhere else hidden_RH[counted_R])
            if logits_NV is not None:
                found.append(_Logits(logits_NV, None if everywhere else counted_R.cumsum(0) - 1))
        # Off the first rank all heads have to run as well, since the first rank waits for this rank's part.
        return found if len(found) == len(self._heads_M) else None

    def _blend(
        self,
        logits_M: Sequence[_Logits | None],
        coefficients_RM: torch.Tensor,
        filters: Filters,
        members: tuple[int, ...],
    ) -> torch.Tensor:
        """Blend rows to which exactly these members contribute."""
        chosen = [logits.logits_NV for member in members if (logits := logits_M[member]) is not None]
        if members[:1] != (
            0,
        ):  # The base's vocabulary is the rows' width even if the base does not contribute.
            members = (0, *members)
            chosen = [torch.zeros((1, 1)).expand(len(coefficients_RM), self._vocabulary), *chosen]
        places = list(members)
        own = Filters(filters.delta_RM[:, places], filters.kind_R, filters.top_p_R)
        filtering = bool(filters.kind_R.any())
        return blend(chosen, coefficients_RM[:, places], self._unshared_U, own if filtering else None)


def scored_rows(blended_RV: torch.Tensor, targets_R: torch.Tensor) -> RowScores:
    """Score one target per row under one vector: all of shape (1, R)."""
    chosen_R1 = blended_RV.gather(-1, targets_R.unsqueeze(-1))
    total_R1 = blended_RV.logsumexp(dim=-1, keepdim=True)
    likelier_R1 = (blended_RV > chosen_R1).sum(dim=-1, keepdim=True, dtype=torch.int32)
    likeliest_R1 = blended_RV.amax(dim=-1, keepdim=True) - total_R1
    return RowScores((chosen_R1 - total_R1).T, likeliest_R1.T, likelier_R1.T + 1)


def _nan_if_broken(blended_RV: torch.Tensor) -> torch.Tensor:
    """The same rows, except that one without a finite maximum becomes NaN throughout."""
    broken_R1 = ~blended_RV.amax(dim=-1, keepdim=True).isfinite()
    return blended_RV.masked_fill(broken_R1, torch.nan) if broken_R1.any() else blended_RV


def _with_base(counted_RM: torch.Tensor, reporting_R: torch.Tensor | None) -> torch.Tensor:
    """The members whose heads run on each row: those that contribute, and the base on rows to compare."""
    if reporting_R is None:
        return counted_RM
    return torch.cat([counted_RM[:, :1] | reporting_R.unsqueeze(-1), counted_RM[:, 1:]], dim=-1)


def _groups(counted_RM: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Group rows to which the same members contribute, with those members."""
    sets_GM, group_R = torch.unique(counted_RM, dim=0, return_inverse=True)
    for group, counted_M in enumerate(sets_GM):
        yield _members(counted_M), (group_R == group).nonzero().squeeze(-1)


def _members(counted_M: torch.Tensor) -> tuple[int, ...]:
    return tuple(counted_M.nonzero().squeeze(-1).tolist())
