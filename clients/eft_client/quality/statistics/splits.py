"""Generalisation: a metric over the prompts with one tag and over those with another, and the gap between."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eft_client.quality.metrics import Scores
from eft_client.quality.statistics.bootstrap import Bootstrap, Estimate, interval

__all__ = ["Split", "generalisation_gap", "tag_values"]

MAX_VALUES = 20


@dataclass(frozen=True, kw_only=True)
class Split:
    """A metric of a setting in and out of the fine-tuning distribution.

    Attributes:
        metric: its name.
        setting: the setting's name.
        inside: the mean over the prompts tagged distribution=in.
        outside: over those tagged distribution=out.
        gap: inside less outside, with the interval of the difference; the two sides share no prompt, so it is not
            a paired one.
    """

    metric: str
    setting: str
    inside: Estimate
    outside: Estimate
    gap: Estimate


def tag_values(scores: Scores) -> Mapping[str, Sequence[str]]:
    """Every tag that splits the prompts: two to twenty values, with each of them the prompts that have it."""
    found: dict[str, dict[str, None]] = {}
    for prompt in scores.prompts:
        for name, value in prompt.tags.items():
            found.setdefault(name, {})[value] = None
    return {name: sorted(values) for name, values in found.items() if 2 <= len(values) <= MAX_VALUES}


def generalisation_gap(inside: Bootstrap, outside: Bootstrap) -> list[Split]:
    """Every metric of every setting on both sides of the split."""
    return [
        _split(inside, outside, metric.name, setting)
        for metric in inside.scores.metrics
        for setting in inside.scores.settings
    ]


def _split(inside: Bootstrap, outside: Bootstrap, metric: str, setting: str) -> Split:
    row = inside.scores.row(setting)
    first, second = inside.estimate(metric, setting), outside.estimate(metric, setting)
    low, high = interval(inside.means[metric][:, row] - outside.means[metric][:, row])
    known = not (math.isnan(first.value) or math.isnan(second.value))
    gap = Estimate(
        first.value - second.value, low if known else math.nan, high if known else math.nan, first.prompts
    )
    return Split(metric=metric, setting=setting, inside=first, outside=second, gap=gap)
