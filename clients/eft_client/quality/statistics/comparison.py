"""Settings against the baseline: paired differences, win rates with ties, and how many were compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eft_client.quality.metrics import Metric
from eft_client.quality.statistics.bootstrap import LEVEL, Bootstrap
from eft_client.quality.statistics.permutation import SignFlips

__all__ = ["PairedDifference", "against_baseline", "holm"]

_EQUAL = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A setting against the baseline, by one metric.

    Attributes:
        metric: its name.
        setting: the setting's name.
        difference: its mean less the baseline's, over the prompts that count.
        low: lower end of the difference's 95 % interval, for just this comparison, by flipping signs; NaN for fewer
            than six prompts.
        high: its upper end.
        p: two-sided, for just this comparison, by flipping signs; NaN for fewer than six prompts.
        p_holm: adjusted for all settings compared by this metric.
        wins: prompts at which the setting is better, by the metric's direction.
        ties: prompts at which both are alike.
        losses: prompts at which the baseline is better.
    """

    metric: str
    setting: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """Wins and half of the ties, of all prompts that count; 0.5 is level."""
        total = self.wins + self.ties + self.losses
        return (self.wins + 0.5 * self.ties) / total if total else math.nan


def against_baseline(bootstrap: Bootstrap, baseline: str) -> list[PairedDifference]:
    """Every other setting against the baseline, by every metric; p-values are adjusted within each metric."""
    others = [setting for setting in bootstrap.scores.settings if setting != baseline]
    found: list[PairedDifference] = []
    for metric in bootstrap.scores.metrics:
        compared = [_compare(bootstrap, metric, setting, baseline) for setting in others]
        adjusted = holm([one.p for one in compared])
        found += [replace(one, p_holm=p) for one, p in zip(compared, adjusted, strict=True)]
    return found


def _compare(bootstrap: Bootstrap, metric: Metric, setting: str, baseline: str) -> PairedDifference:
    # Over the prompts that count for both: a pair with one half is none.
    values = bootstrap.scores.values[metric.name]
    gains = values[bootstrap.scores.row(setting)] - values[bootstrap.scores.row(baseline)]
    gains = gains[~np.isnan(gains)]
    flips = SignFlips.of(gains, bootstrap.repeats, bootstrap.seed)
    low, high = flips.interval(LEVEL)
    return PairedDifference(
        metric=metric.name,
        setting=setting,
        difference=float(gains.mean()) if gains.size else math.nan,
        low=low,
        high=high,
        p=flips.p,
        p_holm=flips.p,
        wins=int((metric.sign * gains > _EQUAL).sum()),
        ties=int((np.abs(gains) <= _EQUAL).sum()),
        losses=int((metric.sign * gains < -_EQUAL).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm, 1979): the chance of any false difference among these stays below p.

    NaN stays NaN and does not count as a comparison.
    """
    adjusted, worst = [math.nan] * len(p_values), 0.0
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, p_values[index] * (len(order) - place)))
        adjusted[index] = worst
    return adjusted
