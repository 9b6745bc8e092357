"""The figures of a quality report: the frontier, and every metric along the sweep."""

from collections.abc import Iterable, Sequence
from typing import Any

from eft_client.quality.metrics import Metric
from eft_client.quality.statistics.bootstrap import Estimate
from eft_client.quality.statistics.frontier import Frontier, Point
from eft_client.quality.summary import Summary
from eft_client.report.plots import label, series, style, subplots

__all__ = ["draw_along", "draw_frontier", "swept_expert"]

#: As a share of the plot.
_APART = 0.07


def draw_frontier(frontier: Frontier, others: Frontier | None) -> Any:
    """The candidates joined in the order of the sweep, those on the frontier named, and the others as points."""
    with style():
        figure, axes = subplots(width=7, height=5)
        look = series(0)
        _bars(axes, frontier.points, label="candidates", **look)
        for number, point in enumerate(others.points if others else ()):
            _bars(
                axes, [point], label=label(point.setting, 32), **(series(number + 1) | {"linestyle": "none"})
            )
        for point in _named(frontier.points, axes):
            place = (point.x.value, point.y.value)
            axes.annotate(
                label(point.setting, 28), place, textcoords="offset points", xytext=(5, 5), fontsize=7
            )
        axes.set(xlabel=_axis(frontier.x), ylabel=_axis(frontier.y))
        axes.legend(fontsize=8)
        return figure


def _named(points: Iterable[Point], axes: Any) -> Sequence[Point]:
    """The points on the frontier that get a label: none too near to the one labelled before."""
    spans = [high - low for low, high in (axes.get_xlim(), axes.get_ylim())]
    chosen: list[Point] = []
    for point in points:
        if point.on_frontier and (not chosen or _apart(point, chosen[-1], spans) > _APART):
            chosen.append(point)
    return chosen


def _apart(one: Point, other: Point, spans: Sequence[float]) -> float:
    """How far two points are from each other, as a share of the plot: by the axis on which they are farther."""
    return max(abs(one.x.value - other.x.value) / spans[0], abs(one.y.value - other.y.value) / spans[1])


def _bars(axes: Any, points: Sequence[Point], **look: Any) -> None:
    x, x_error = _with_errors([point.x for point in points])
    y, y_error = _with_errors([point.y for point in points])
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, capsize=2, linewidth=1.1, **look)


def swept_expert(summary: Summary) -> str | None:
    """The one coordinate of the sweep; None where there is no sweep, or one over a grid."""
    names = {name for setting in summary.findings.plan.settings for name in setting.sweep}
    return names.pop() if len(names) == 1 else None


def draw_along(summary: Summary, metrics: Sequence[Metric], expert: str) -> Any:
    """Metrics of one unit along the sweep of one expert; a baseline that is not on it is a level."""
    swept = [setting for setting in summary.findings.plan.settings if setting.sweep]
    swept.sort(key=lambda setting: setting.sweep[expert])
    x, baseline = [setting.sweep[expert] for setting in swept], summary.findings.plan.baseline
    with style():
        figure, axes = subplots(width=7, height=4)
        for number, metric in enumerate(metrics):
            look = series(number)
            y, error = _with_errors([summary.estimates[metric.name, setting.name] for setting in swept])
            axes.errorbar(x, y, yerr=error, capsize=2, linewidth=1.1, label=metric.name, **look)
            if baseline not in {setting.name for setting in swept}:
                level = summary.estimates[metric.name, baseline].value
                named = f"{metric.name}, {label(baseline)}"
                axes.axhline(level, color=look["color"], linestyle=":", linewidth=1, label=named)
        axes.set(xlabel=f"weight of {label(expert)}", ylabel="share" if metrics[0].share else "value")
        axes.legend(fontsize=8)
        return figure


def _with_errors(found: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Values, and their distances to the ends of their intervals (below, above)."""
    below = [max(0.0, one.value - one.low) for one in found]
    above = [max(0.0, one.high - one.value) for one in found]
    return [one.value for one in found], [below, above]


def _axis(metric: Metric) -> str:
    return f"{metric.name} ({'higher' if metric.higher_is_better else 'lower'} is better)"
