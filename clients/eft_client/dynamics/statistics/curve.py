"""A mean over prompts along an axis, resampled: values, changes and their intervals, all paired.

The resamples depend on the seed and the number of prompts, so all curves of one side are paired: a difference between
two of them, or between two steps of one, is taken within resamples.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.statistics.bootstrap import LEVEL, Estimate, resampled_means, wilson
from eft_client.quality.statistics.permutation import FEWEST, SignFlips, subsets_for

__all__ = ["Curve", "estimates", "fewest"]

_DRAWS_OUTSIDE = 10
"""Of the subsets that are drawn, about so many are beyond an end of an interval."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One number of every prompt at every step.

    Attributes:
        values_SP: [steps, prompts]; a prompt with a NaN at any step does not count at all.
        repeats: how many resamples.
        seed: of the resamples.
        share: whether it is a share, between 0 and 1.
    """

    values_SP: NDArray[np.float64]
    repeats: int = 10_000
    seed: int = 0
    share: bool = False

    @cached_property
    def counted_SP(self) -> NDArray[np.float64]:
        """The values, NaN throughout for a prompt that does not count."""
        return np.where(np.isnan(self.values_SP).any(axis=0), np.nan, self.values_SP)

    @cached_property
    def means_S(self) -> NDArray[np.float64]:
        """The means; NaN where no prompt counts."""
        if not self.prompts:
            return np.full(len(self.values_SP), np.nan)
        return np.asarray(np.nanmean(self.counted_SP, axis=1))

    @cached_property
    def resampled_RS(self) -> NDArray[np.float64]:
        """The resampled means, [repeats, steps]."""
        return resampled_means(self.counted_SP, self.repeats, self.seed)

    @property
    def prompts(self) -> int:
        """How many prompts count."""
        return int((~np.isnan(self.counted_SP[0])).sum())

    @property
    def last(self) -> int:
        """The last step's place."""
        return len(self.values_SP) - 1

    @cached_property
    def estimates(self) -> list[Estimate]:
        """The mean at every step, with its interval; of a share that is 0 or 1 throughout, Wilson's."""
        found = estimates(self.means_S, self.resampled_RS, self.prompts)
        return [self._share(one) for one in found] if self.share else found

    def change(self, start: int, stop: int, *, among: int = 1) -> Estimate:
        """The mean's change from one step to another, with its interval.

        One that was picked among several has to hold for all of them at once (Bonferroni), by flipping signs, since
        resampling shows too little of its ends where prompts are few; NaN where these are fewer than `fewest`.

        Args:
            start: The first step's place.
            stop: The other's.
            among: How many changes it was picked among.
        """
        value = self.means_S[stop] - self.means_S[start]
        if among > 1:
            gains_P = self.counted_SP[stop] - self.counted_SP[start]
            # That far out, the repeats that percentiles need are too few.
            repeats = max(self.repeats, _DRAWS_OUTSIDE * subsets_for(1 - (1 - LEVEL) / among))
            flips = SignFlips.of(gains_P[~np.isnan(gains_P)], repeats, self.seed)
            return Estimate(float(value), *flips.interval(1 - (1 - LEVEL) / among), self.prompts)
        gains = self.resampled_RS[:, stop] - self.resampled_RS[:, start]
        return estimates(value[None], gains[:, None], self.prompts)[0]

    def changes(self) -> list[Estimate]:
        """The change of every step from the first; 0 there."""
        return estimates(
            self.means_S - self.means_S[0], self.resampled_RS - self.resampled_RS[:, :1], self.prompts
        )

    def _share(self, one: Estimate) -> Estimate:
        if one.value not in (0.0, 1.0):
            return one
        return Estimate(one.value, *wilson(one.value, one.prompts), one.prompts)


def estimates(
    means_S: NDArray[np.float64], resampled_RS: NDArray[np.float64], prompts: int
) -> list[Estimate]:
    """Means with their percentile intervals; resamples that are NaN do not count."""
    if not prompts or not len(means_S):
        return [Estimate(math.nan, math.nan, math.nan, prompts) for _ in means_S]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    quantile = np.nanquantile if np.isnan(resampled_RS).any() else np.quantile
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        low_S, high_S = quantile(resampled_RS, ends, axis=0)
    return [
        Estimate(float(value), float(low), float(high), prompts)
        for value, low, high in zip(means_S, low_S, high_S, strict=True)
    ]


def fewest(among: int) -> int:
    """How many prompts a change has to have that was picked among several, if its interval is to have ends."""
    return max(FEWEST, math.ceil(math.log2(subsets_for(1 - (1 - LEVEL) / among) + 1)))
