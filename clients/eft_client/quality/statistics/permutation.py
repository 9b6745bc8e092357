"""Whether two settings differ, and by how much: a permutation test over paired prompts, exact where they are few.

Flipping the signs of some differences takes their sum to the other side of 0 exactly where the mean of those that are
flipped is on that side. So the means of all subsets hold both the test and its inverse, an interval: the true mean lies
between any two neighbours of them equally often, if the differences are symmetric about it.

Sources: Fisher, The Design of Experiments (1935), section 21; Hartigan, "Using subsample values as typical values"
(1969); Phipson & Smyth (2010) for the sampled test.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "SignFlips", "subsets_for"]

FEWEST = 6
"""Below, no difference whatever could reach p = 0.05: of 2 to the 5 signs, two are as extreme as the most extreme."""

_EXACT = 14
"""Up to this number of differences all ways of signs, 16,384 at most, are looked at."""

_BLOCK_NUMBERS = 1 << 22
_ROUNDING = 1e-9


def subsets_for(level: float) -> int:
    """How many subsets an interval of a level needs to have ends."""
    return math.ceil(2 / (1 - level) - _ROUNDING) - 1


@dataclass(frozen=True)
class SignFlips:
    """What flipping signs shows of a mean.

    Attributes:
        means_S: the means of the subsets looked at, sorted; none where there are too few values.
    """

    means_S: NDArray[np.float64]

    @classmethod
    def of(cls, gains_P: NDArray[np.float64], repeats: int, seed: int) -> Self:
        """Look at the subsets.

        Args:
            gains_P: differences by prompt, without NaN.
            repeats: how many subsets are drawn where there are too many to look at all.
            seed: of the draws.
        """
        if gains_P.size < FEWEST:
            return cls(np.empty(0))
        if gains_P.size <= _EXACT:
            chosen = np.arange(1, 1 << gains_P.size)[:, None] >> np.arange(gains_P.size) & 1
            return cls(np.sort(chosen @ gains_P / chosen.sum(axis=1)))
        rng, rows, found = np.random.default_rng(seed), max(1, _BLOCK_NUMBERS // gains_P.size), []
        for start in range(0, repeats, rows):
            chosen = rng.integers(0, 2, size=(min(rows, repeats - start), gains_P.size), dtype=np.int8)
            chosen = chosen[chosen.any(axis=1)]
            found.append(chosen @ gains_P / chosen.sum(axis=1, dtype=np.int64))
        return cls(np.sort(np.concatenate(found)))

    @property
    def p(self) -> float:
        """Two-sided p of "no difference": how often signs at random make the sum as far from 0 as it is.

        If two settings are alike, either of a prompt's two values could as well have been the other's. The p-value is
        valid for any number of prompts and any distribution, unlike one from resampling them. NaN for fewer than
        `FEWEST` values; 1 where nothing differs.
        """
        if not self.means_S.size:
            return math.nan
        zero = _ROUNDING * np.abs(self.means_S).max()
        beyond = min((self.means_S <= zero).sum(), (self.means_S >= -zero).sum())
        return min(1.0, 2 * (int(beyond) + 1) / (self.means_S.size + 1))

    def interval(self, level: float) -> tuple[float, float]:
        """The means that the test does not reject: 0 is outside exactly where p is 1 − level or less.

        NaN where there are too few subsets for any mean to be rejected.
        """
        outside = math.floor((self.means_S.size + 1) * (1 - level) / 2 + _ROUNDING)
        if not outside:
            return math.nan, math.nan
        return float(self.means_S[outside - 1]), float(self.means_S[-outside])
