"""Paired bootstrap over prompts: all settings and all metrics see the same resamples.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 (percentile intervals) and 16.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.metrics import Scores
from eft_client.quality.statistics.permutation import SignFlips

__all__ = ["LEVEL", "Bootstrap", "Estimate", "drawn_counts", "interval", "resampled_means", "wilson"]

LEVEL = 0.95
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval.

    Attributes:
        value: NaN where no prompt counts.
        low: the interval's lower end.
        high: its upper end.
        prompts: how many count.
    """

    value: float
    low: float
    high: float
    prompts: int


def resampled_means(values_SP: NDArray[np.float64], repeats: int, seed: int) -> NDArray[np.float64]:
    """Means [repeats, settings] over prompts drawn with replacement; NaNs do not count.

    The draws follow only from the seed and the number of prompts, so two calls are paired.
    """
    mask, filled = ~np.isnan(values_SP), np.nan_to_num(values_SP)
    with np.errstate(invalid="ignore"):
        blocks = [
            (draws @ filled.T) / (draws @ mask.T) for draws in drawn_counts(values_SP.shape[1], repeats, seed)
        ]
    return np.concatenate(blocks)


def drawn_counts(count: int, repeats: int, seed: int) -> Iterable[NDArray[np.float64]]:
    """How often each of `count` prompts is in a resample: blocks of rows, [repeats, prompts] together.

    They follow only from the three arguments, so whatever is computed from them is paired. A single block is kept for
    the next call.
    """
    if repeats * count <= _BLOCK_NUMBERS:
        return (_single_block(count, repeats, seed),)
    rng, rows = np.random.default_rng(seed), max(1, _BLOCK_NUMBERS // count)
    return (_drawn(rng, count, min(rows, repeats - start)) for start in range(0, repeats, rows))


@lru_cache(maxsize=4)
def _single_block(count: int, repeats: int, seed: int) -> NDArray[np.float64]:
    return _drawn(np.random.default_rng(seed), count, repeats)


def _drawn(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    return rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share of `count` independent trials (Wilson, 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    z2 = z * z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    margin = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, centre - margin), min(1.0, centre + margin)


@dataclass(frozen=True)
class Bootstrap:
    """The resampled means of every metric.

    Attributes:
        scores: what was resampled.
        means: by metric's name, [repeats, settings].
        repeats: how many resamples.
        seed: of the resamples.
    """

    scores: Scores
    means: Mapping[str, NDArray[np.float64]]
    repeats: int
    seed: int

    @classmethod
    def of(cls, scores: Scores, *, repeats: int = 10_000, seed: int = 0) -> "Bootstrap":
        """Resample the prompts once for all metrics."""
        stacked = np.concatenate(list(scores.values.values()))
        means = resampled_means(stacked, repeats, seed)
        size = len(scores.settings)
        parts = (means[:, start : start + size] for start in range(0, len(stacked), size))
        return cls(scores, dict(zip(scores.values, parts, strict=True)), repeats, seed)

    def paired(self, metric: str, settings: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some settings' values of a metric, and their resampled means, over the prompts that count for all of them.

        Returns:
            [settings, prompts that count] and [repeats, settings].
        """
        rows = [self.scores.row(setting) for setting in settings]
        values = self.scores.values[metric][rows]
        counts = ~np.isnan(values).any(axis=0)
        if counts.all():
            return values, self.means[metric][:, rows]
        whole = np.where(counts, values, np.nan)
        return values[:, counts], resampled_means(whole, self.repeats, self.seed)

    def estimate(self, metric: str, setting: str, *, among: int = 1) -> Estimate:
        """A setting's mean of a metric, with its percentile interval.

        The interval of one that is chosen among several has to hold for all of them at once: each is as much wider
        (Bonferroni), by flipping signs, since resampling shows too little of its ends where prompts are few; a share's
        is no narrower than Wilson's. NaN where there are too few prompts for one.

        Where every prompt has the same value, 0 or 1, resampling shows no spread at all; the interval is then
        Wilson's for as many trials as prompts.
        """
        row = self.scores.row(setting)
        values = self.scores.values[metric][row]
        counted = values[~np.isnan(values)]
        if not counted.size:
            return Estimate(math.nan, math.nan, math.nan, 0)
        value = float(counted.mean())
        level = 1 - (1 - LEVEL) / among
        if among > 1:
            low, high = SignFlips.of(counted, self.repeats, self.seed).interval(level)
        else:
            low, high = interval(self.means[metric][:, row])
        if self._is_share(metric) and (among > 1 or (low == high and value in (0.0, 1.0))):
            around = wilson(value, counted.size, level)
            low, high = float(np.minimum(low, around[0])), float(np.maximum(high, around[1]))
        return Estimate(value, low, high, int(counted.size))

    def _is_share(self, metric: str) -> bool:
        return any(one.name == metric and one.share for one in self.scores.metrics)


def interval(resampled_R: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval; NaN where nothing could be resampled."""
    found = resampled_R[~np.isnan(resampled_R)]
    if not found.size:
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
