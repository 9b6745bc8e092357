"""A mean over prompts along an axis, resampled: values, changes and their intervals, all paired.

The resamples depend on the seed and the number of prompts, so all curves of one side are paired: a difference between
two of them, or between two steps of one, is taken within resamples.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.statistics.bootstrap import LEVEL, Estimate, resampled_means, wilson

__all__ = ["Curve"]


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
        return [self._at(step) for step in range(self.last + 1)]

    def change(self, start: int, stop: int, *, among: int = 1) -> Estimate:
        """The mean's change from one step to another, with its interval.

        Args:
            start: The first step's place.
            stop: The other's.
            among: How many such changes the interval has to hold for at once (Bonferroni).
        """
        gains = self.resampled_RS[:, stop] - self.resampled_RS[:, start]
        low, high = _interval(gains, 1 - (1 - LEVEL) / among)
        return Estimate(float(self.means_S[stop] - self.means_S[start]), low, high, self.prompts)

    def changes(self) -> list[Estimate]:
        """The change of every step from the first; 0 there."""
        return [self.change(0, step) for step in range(self.last + 1)]

    def _at(self, step: int) -> Estimate:
        low, high = _interval(self.resampled_RS[:, step], LEVEL)
        value = float(self.means_S[step])
        if self.share and value in (0.0, 1.0):
            low, high = wilson(value, self.prompts)
        return Estimate(value, low, high, self.prompts)


def _interval(resampled_R: NDArray[np.float64], level: float) -> tuple[float, float]:
    found = resampled_R[~np.isnan(resampled_R)]
    if not found.size:
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
