"""A study's results in words and cells, for the terminal and for the page alike."""

import math
from collections.abc import Sequence

from eft_client.quality.metrics import Metric
from eft_client.quality.statistics.bootstrap import Estimate
from eft_client.quality.statistics.frontier import Recommendation
from eft_client.quality.summary import Summary

__all__ = [
    "comparison_rows",
    "estimate_rows",
    "frontier_rows",
    "gap_rows",
    "recommendation",
    "split_rows",
    "with_interval",
]

COMPARISON_HEADER = (
    "setting",
    "metric",
    "difference",
    "95 % interval",
    "p (Holm)",
    "win rate",
    "won / tied / lost",
)
SPLIT_HEADER = ("setting", "metric", "in", "out", "in − out", "95 % interval")
FRONTIER_HEADER = ("setting", "on the frontier", "of resamples")
GAP_HEADER = (
    "emulation",
    "metric",
    "small expert",
    "emulation",
    "truly fine-tuned",
    "closed",
    "95 % interval",
)


def with_interval(one: Estimate, *, share: bool) -> str | None:
    """A value with its interval; shares as percentages."""
    if math.isnan(one.value):
        return None
    if share:
        return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def unit(metric: Metric) -> str:
    """A metric's name as a column is headed: with what it counts in and which way is better."""
    return f"{metric.name}{', %' if metric.share else ''} {'↑' if metric.higher_is_better else '↓'}"


def estimate_rows(summary: Summary, metrics: Sequence[Metric]) -> list[list[str | None]]:
    """A row for each setting: its name and each metric with its interval."""
    return [
        [name, *(with_interval(summary.estimates[m.name, name], share=m.share) for m in metrics)]
        for name in summary.settings
    ]


def comparison_rows(summary: Summary) -> list[list[str | None]]:
    """A row for each setting and metric, as COMPARISON_HEADER has it."""
    shares = {metric.name: metric.share for metric in summary.measured}
    sets = {metric.name for metric in summary.measured if metric.of_a_set}
    return [
        [
            one.setting,
            one.metric,
            _signed(one.difference, shares[one.metric]),
            None if math.isnan(one.low) else _range(one.low, one.high, shares[one.metric]),
            None if math.isnan(one.p_holm) else f"{one.p_holm:.4f}",
            None if one.metric in sets else f"{100 * one.win_rate:.1f} %",
            None if one.metric in sets else f"{one.wins} / {one.ties} / {one.losses}",
        ]
        for one in summary.comparisons
        if one.metric in shares and not math.isnan(one.difference)
    ]


def split_rows(summary: Summary) -> list[list[str | None]]:
    """A row for each setting and metric, as SPLIT_HEADER has it."""
    shares = {metric.name: metric.share for metric in summary.measured}
    return [
        [
            one.setting,
            one.metric,
            _plain(one.inside.value, shares[one.metric]),
            _plain(one.outside.value, shares[one.metric]),
            _signed(one.gap.value, shares[one.metric]),
            _range(one.gap.low, one.gap.high, shares[one.metric]),
        ]
        for one in summary.splits
        if one.metric in shares and not math.isnan(one.gap.value)
    ]


def frontier_rows(summary: Summary) -> tuple[list[str], list[list[str | None]]]:
    """The header and a row for each setting that could be served."""
    if summary.frontier is None:
        return [], []
    x, y = summary.frontier.x, summary.frontier.y
    rows = [
        [
            point.setting,
            with_interval(point.x, share=x.share),
            with_interval(point.y, share=y.share),
            "yes" if point.on_frontier else "no",
            f"{100 * point.share:.0f} %",
        ]
        for point in summary.frontier.points
    ]
    return [FRONTIER_HEADER[0], unit(x), unit(y), *FRONTIER_HEADER[1:]], rows


def gap_rows(summary: Summary) -> list[list[str | None]]:
    """A row for each gap and metric, as GAP_HEADER has it."""
    shares = {metric.name: metric.share for metric in summary.measured}
    return [
        [
            one.gap.emulation,
            one.metric,
            *(_plain(value, shares[one.metric]) for value in (one.small, one.emulation, one.tuned)),
            None if one.doubtful or math.isnan(one.closed.value) else f"{100 * one.closed.value:.0f} %",
            "no sure gap" if one.doubtful else _range(one.closed.low, one.closed.high, True),
        ]
        for one in summary.gaps
        if one.metric in shares
    ]


def recommendation(choice: Recommendation) -> str:
    """Which setting to serve, and how sure that is."""
    if choice.setting is None:
        return f"No setting reaches {choice.constraint}."
    text = f"Under {choice.constraint}, {choice.setting} is best by {choice.maximised}"
    if choice.alike:
        text += f" (exactly as good: {'; '.join(choice.alike)})"
    if choice.surely:
        return f"{text}; its whole interval, 95 % for all candidates at once, satisfies it."
    rest = (
        f"the best whose whole interval does is {choice.safe}" if choice.safe else "that of no setting does"
    )
    return f"{text}. Its interval, 95 % for all candidates at once, reaches beyond it or is none; {rest}."


def _plain(value: float, share: bool) -> str | None:
    if math.isnan(value):
        return None
    return f"{100 * value:.1f} %" if share else f"{value:.3f}"


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+.1f} %" if share else f"{value:+.3f}"


def _range(low: float, high: float, share: bool) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %" if share else f"{low:.3f} to {high:.3f}"
