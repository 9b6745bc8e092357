"""Two metrics traded against each other: the settings that are not dominated, and the best under a constraint."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from eft_client.quality.errors import StudyError
from eft_client.quality.metrics import Metric, find_metric
from eft_client.quality.statistics.bootstrap import Bootstrap, Estimate
from eft_client.text import finite_number

__all__ = ["Constraint", "Frontier", "Point", "Recommendation", "choose", "non_dominated", "trace"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting on the plane of two metrics.

    Attributes:
        setting: its name.
        x: its mean by the first metric.
        y: its mean by the second.
        on_frontier: no other setting is at least as good by both and better by one.
        share: of the resamples, those in which it is on the frontier: how sure that is.
    """

    setting: str
    x: Estimate
    y: Estimate
    on_frontier: bool
    share: float


@dataclass(frozen=True)
class Frontier:
    """The settings on the plane of two metrics."""

    x: Metric
    y: Metric
    points: Sequence[Point]


@dataclass(frozen=True)
class Constraint:
    """`harmlessness>=0.95`: what a setting must reach to be chosen."""

    metric: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read `METRIC>=NUMBER` or `METRIC<=NUMBER`.

        Raises:
            StudyError: It has another form.
        """
        found = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=)\s*(\S+)\s*", text)
        bound = finite_number(found[3]) if found else None
        if found is None or bound is None:
            raise StudyError(f"constraint {text!r}: expected METRIC>=NUMBER, as in harmlessness>=0.95")
        return cls(found[1], found[2] == ">=", bound)

    @override
    def __str__(self) -> str:
        """As it is written."""
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.bound:g}"

    def require_possible(self, metric: Metric) -> None:
        """Refuse a bound that no value of the metric can be at.

        Raises:
            StudyError: The metric is a share, and the bound is none.
        """
        if metric.share and not 0 <= self.bound <= 1:
            raise StudyError(
                f"constraint '{self}': {metric.name} is a share; expected a number from 0 to 1, as in "
                f"{metric.name}>=0.95"
            )

    def met_by(self, value: float) -> bool:
        """Whether a value satisfies it; NaN does not."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Recommendation:
    """The best setting under a constraint.

    Attributes:
        constraint: what had to be reached.
        maximised: the metric that was maximised among the settings that reach it (minimised, if lower is better).
        setting: the best of them; None where none reaches it.
        surely: whether the whole interval of the chosen one satisfies the constraint, too: 95 % for all candidates at
            once, since it was chosen among them; not where there are too few prompts for such an interval.
        safe: the best among those whose whole interval does; None where there is none.
        alike: others that reach the constraint and are exactly as good.
    """

    constraint: Constraint
    maximised: str
    setting: str | None
    surely: bool
    safe: str | None
    alike: Sequence[str] = ()


def non_dominated(points_SD: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows no other row dominates: at least as good everywhere and better somewhere; higher is better.

    A row with a NaN is dominated by definition and dominates nothing.
    """
    known = ~np.isnan(points_SD).any(axis=1)
    at_least = (points_SD[:, None, :] >= points_SD[None, :, :]).all(axis=2)
    better = (points_SD[:, None, :] > points_SD[None, :, :]).any(axis=2)
    dominates = np.logical_and(at_least, better) & np.asarray(known)[:, None]
    return np.asarray(known & ~dominates.any(axis=0), dtype=np.bool_)


def trace(bootstrap: Bootstrap, x: str, y: str, settings: Sequence[str]) -> Frontier:
    """Place settings on the plane of two metrics.

    Raises:
        StudyError: A metric or a setting is not known.
    """
    metrics = [find_metric(bootstrap.scores.metrics, name) for name in (x, y)]
    rows = [bootstrap.scores.row(setting) for setting in settings]
    found = [[bootstrap.estimate(metric.name, setting) for metric in metrics] for setting in settings]
    signs = np.array([metric.sign for metric in metrics], dtype=np.float64)
    chosen = non_dominated(np.array([[one.value for one in pair] for pair in found]) * signs)
    resampled = np.stack([bootstrap.means[metric.name][:, rows] for metric in metrics], axis=2) * signs
    shares = np.mean([non_dominated(points) for points in resampled], axis=0)
    points = [
        Point(setting=setting, x=pair[0], y=pair[1], on_frontier=bool(on), share=float(share))
        for setting, pair, on, share in zip(settings, found, chosen, shares, strict=True)
    ]
    return Frontier(metrics[0], metrics[1], points)


def choose(
    bootstrap: Bootstrap, constraint: Constraint, maximise: str, settings: Sequence[str]
) -> Recommendation:
    """The setting that is best by one metric among those that satisfy the constraint.

    Raises:
        StudyError: A metric is not known.
    """
    find_metric(bootstrap.scores.metrics, constraint.metric)
    target = find_metric(bootstrap.scores.metrics, maximise)
    # A setting chosen for looking good has an interval that looks good: it has to hold for all candidates.
    limits = {
        setting: bootstrap.estimate(constraint.metric, setting, among=len(settings)) for setting in settings
    }
    worst = {name: one.low if constraint.at_least else one.high for name, one in limits.items()}
    met = [name for name in settings if constraint.met_by(limits[name].value)]
    safe = [name for name in met if constraint.met_by(worst[name])]
    best = _best(bootstrap, target, met)
    value = bootstrap.estimate(maximise, best).value if best else math.nan
    alike = [name for name in met if name != best and bootstrap.estimate(maximise, name).value == value]
    return Recommendation(constraint, maximise, best, best in safe, _best(bootstrap, target, safe), alike)


def _best(bootstrap: Bootstrap, metric: Metric, settings: Sequence[str]) -> str | None:
    values = {name: metric.sign * bootstrap.estimate(metric.name, name).value for name in settings}
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return max(known, key=lambda name: known[name]) if known else None
