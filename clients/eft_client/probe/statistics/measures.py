"""Accuracy, AUC and Kendall's τ of held-out scores, and the same over resampled prompts.

Each is a ratio of sums: over rows for accuracy, over pairs of rows for the other two. The sums are kept by prompt, or
by pair of prompts, so that a resample needs only how often it holds each prompt. Pairs are of rows in one fold: every
fold has a probe of its own, and scores of two probes have no common scale (compared across folds, even a probe that
knows nothing is below chance, since its mean is high where that of the fold left out is low). And where a resample
holds a prompt twice, rows of one copy are not compared with those of the other, lest one prompt have too many pairs.

Probes of different folds share most of their training rows, and two rows that are in different folds each help to fit
the probe of the other. So scores of a cross-validation vary more than as many independent ones would; resampled values
are widened for it.

Sources: Kendall (1945) for τ-b, ties and all; Hanley & McNeil (1982) for AUC as a share of pairs; Davison & Hinkley,
Bootstrap Methods and their Application (1997), section 3.8, for resampling whole clusters; Nadeau & Bengio, "Inference
for the generalization error" (2003), for the widening.

Shape suffixes: R rows, P prompts, Q prompts of a fold, D draws.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from eft_client.quality.statistics.bootstrap import drawn_counts

__all__ = ["ACCURACY", "AUC", "PAIR_AUC", "TAU", "Held", "Measure", "Resampled", "measured", "widening"]

_BLOCK_PAIRS = 1 << 24

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What probes said of rows that they had not seen.

    Attributes:
        scores_R: what the probe of the row's fold gives it.
        targets_R: what it should have said: a number, or a class, positive or not.
        prompts_R: the place of the row's prompt among all prompts.
        folds_R: the fold that the row was left out in; all rows of a prompt are in one.
    """

    scores_R: Floats
    targets_R: Floats
    prompts_R: NDArray[np.int64]
    folds_R: NDArray[np.int64]


@dataclass(frozen=True)
class Resampled:
    """A measure's value, and its values over resampled prompts; those of one seed are paired.

    Attributes:
        value: over all prompts; NaN where nothing can be compared.
        draws_D: over each resample, farther from the value by what `widening` says.
        prompts: how many prompts count.
    """

    value: float
    draws_D: Floats
    prompts: int


@dataclass(frozen=True)
class Measure(ABC):
    """One way to compare scores with targets.

    Attributes:
        name: as in tables.
        chance: its value where scores know nothing of targets.
        meaning: what it is, in a line.
        least: its value where scores are wrong throughout; 1 where they are right.
    """

    name: str
    chance: float
    meaning: str
    least: float = 0.0

    @abstractmethod
    def sums(self, held: Held) -> Iterator["GroupSums"]:
        """The sums of each fold, or of all of them."""

    @abstractmethod
    def ratio(self, sums_DS: Floats) -> Floats:
        """The measure from its sums, one row a resample."""


@dataclass(frozen=True)
class GroupSums:
    """What a measure adds up, by prompt or by pair of prompts.

    Attributes:
        prompts_Q: the prompts' places.
        parts: arrays [Q] or [Q, Q].
    """

    prompts_Q: NDArray[np.int64]
    parts: tuple[Floats, ...]

    def over(self, counts_DP: Floats) -> Floats:
        """Each part's sum over the prompts, as often as they count: [D, parts]."""
        counts_DQ = counts_DP[:, self.prompts_Q]
        return np.stack([_sum(part, counts_DQ) for part in self.parts], axis=1)


def _sum(part: Floats, counts_DQ: Floats) -> Floats:
    if part.ndim == 1:
        return counts_DQ @ part
    own_Q = np.diagonal(part)
    found: Floats = np.einsum("dq,dq->d", counts_DQ @ (part - np.diag(own_Q)), counts_DQ) + counts_DQ @ own_Q
    return found


def measured(measure: Measure, held: Held, prompts: int, *, repeats: int, seed: int) -> Resampled:
    """A measure of held-out scores, over all prompts and over resamples of them.

    Args:
        measure: Which.
        held: The scores and targets.
        prompts: How many prompts there are in all.
        repeats: The number of resamples.
        seed: Of the resamples; with one seed they are the same for all measures and all probes.
    """
    folds = list(measure.sums(held))

    def over(counts_DP: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return measure.ratio(np.sum([fold.over(counts_DP) for fold in folds], axis=0))

    value = float(over(np.ones((1, prompts)))[0])
    draws = np.concatenate([[], *(over(counts) for counts in drawn_counts(prompts, repeats, seed))])
    wider = widening(len(np.unique(held.folds_R)))
    return Resampled(value, value + wider * (draws - value), len(np.unique(held.prompts_R)))


def widening(folds: int) -> float:
    """How much wider than for independent rows an interval over a cross-validation is: √(1 + k/(k − 1)) for k folds.

    Nadeau & Bengio's variance is σ² (1/k + n_test/n_train) where independent folds would have σ²/k. One fold is no
    cross-validation, and has 1.
    """
    return 1.0 if folds < 2 else math.sqrt(1 + folds / (folds - 1))


class _Accuracy(Measure):
    @override
    def sums(self, held: Held) -> Iterator[GroupSums]:
        prompts, places = np.unique(held.prompts_R, return_inverse=True)
        sides = np.sign(held.scores_R) * np.sign(held.targets_R)
        right = np.bincount(places, weights=(sides + 1) / 2).astype(np.float64)
        yield GroupSums(prompts, (right, np.bincount(places).astype(np.float64)))

    @override
    def ratio(self, sums_DS: Floats) -> Floats:
        return sums_DS[:, 0] / sums_DS[:, 1]


class _Auc(Measure):
    @override
    def sums(self, held: Held) -> Iterator[GroupSums]:
        def won(rows: slice, fold: Held) -> tuple[Floats, ...]:
            pairs = (fold.targets_R[rows, None] > 0) & (fold.targets_R[None] <= 0)
            order = np.sign(fold.scores_R[rows, None] - fold.scores_R[None])
            return (order + 1) / 2 * pairs, pairs.astype(np.float64)

        yield from _by_fold(held, won, 2)

    @override
    def ratio(self, sums_DS: Floats) -> Floats:
        return sums_DS[:, 0] / sums_DS[:, 1]


class _PairAuc(_Auc):
    """Of differences: each is one of each class, in its two directions."""

    @override
    def sums(self, held: Held) -> Iterator[GroupSums]:
        yield from super().sums(
            Held(
                scores_R=np.concatenate([held.scores_R, -held.scores_R]),
                targets_R=np.concatenate([held.targets_R, -held.targets_R]),
                prompts_R=np.tile(held.prompts_R, 2),
                folds_R=np.tile(held.folds_R, 2),
            )
        )


class _Tau(Measure):
    @override
    def sums(self, held: Held) -> Iterator[GroupSums]:
        def agreed(rows: slice, fold: Held) -> tuple[Floats, ...]:
            scores = np.sign(fold.scores_R[rows, None] - fold.scores_R[None])
            targets = np.sign(fold.targets_R[rows, None] - fold.targets_R[None])
            return scores * targets, np.abs(scores), np.abs(targets)

        yield from _by_fold(held, agreed, 3)

    @override
    def ratio(self, sums_DS: Floats) -> Floats:
        """τ-b; scores that are all alike agree with nothing, which is 0."""
        below = np.sqrt(sums_DS[:, 1] * sums_DS[:, 2])
        return np.where(sums_DS[:, 1] == 0, np.where(sums_DS[:, 2] == 0, np.nan, 0.0), sums_DS[:, 0] / below)


def _by_fold(
    held: Held, of_pairs: Callable[[slice, Held], tuple[Floats, ...]], parts: int
) -> Iterator[GroupSums]:
    """GroupSums by pair of prompts in each fold; `of_pairs` gives some rows' values with all rows of the fold."""
    for number in np.unique(held.folds_R):
        fold = _rows(held, np.flatnonzero(held.folds_R == number))
        prompts, places = np.unique(fold.prompts_R, return_inverse=True)
        sums = np.zeros((parts, len(prompts), len(prompts)))
        step = max(1, _BLOCK_PAIRS // len(places))
        for start in range(0, len(places), step):
            rows = slice(start, start + step)
            for total, values in zip(sums, of_pairs(rows, fold), strict=True):
                np.add.at(total, places[rows], _add_columns(values, places, len(prompts)))
        yield GroupSums(prompts, tuple(sums))


def _rows(held: Held, rows: NDArray[np.int64]) -> Held:
    """Some rows, those of a prompt together."""
    ordered = rows[np.argsort(held.prompts_R[rows], kind="stable")]
    return Held(
        scores_R=held.scores_R[ordered],
        targets_R=held.targets_R[ordered],
        prompts_R=held.prompts_R[ordered],
        folds_R=held.folds_R[ordered],
    )


def _add_columns(values: Floats, places: NDArray[np.int64], count: int) -> Floats:
    """The sum of the columns of each place; places are sorted, and each of `count` occurs."""
    starts = np.searchsorted(places, np.arange(count))
    found: Floats = np.add.reduceat(values, starts, axis=1)
    return found


ACCURACY = _Accuracy(
    "accuracy", 0.5, "the share of rows that the probe puts on the right side; ties count half"
)
AUC = _Auc("AUC", 0.5, "the share of pairs, one of each class, that the probe puts in the right order")
PAIR_AUC = _PairAuc(
    "AUC", 0.5, "the share of pairs of rows, one turned round, that the probe puts in the right order"
)
TAU = _Tau("τ", 0.0, "Kendall's τ-b between scores and targets", -1.0)
