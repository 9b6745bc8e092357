"""The report's figures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eft_client.load.arrivals import is_open
from eft_client.load.statistics.comparison import Comparison, Outcome
from eft_client.load.statistics.measures import (
    LATENCIES,
    SCHEDULED,
    concurrency_over_time,
    tokens_over_time,
    values,
)
from eft_client.report.plots import label, series, style, subplots

__all__ = ["draw_latencies", "draw_throughput", "draw_timeline"]

MAX_POINTS = 400


def draw_latencies(comparison: Comparison, load: str) -> Any:
    """How each latency is distributed under one load: the share of what was observed that is no longer.

    In open loops, dashed lines begin at the scheduled time. The axes end where the slowest half percent of some
    target's begins.
    """
    with style():
        figure, axes = subplots(2, 2, height=5.6)
        for place, (name, title) in zip(axes.flat, LATENCIES.items(), strict=True):
            right = 0.0
            for index, outcome in enumerate(comparison.under(load)):
                observed = values(outcome.records, name)
                if observed:
                    right = max(right, float(np.percentile(observed, 99.5)))
                    place.plot(*_distribution(observed), label=label(outcome.target), **_line(index))
                if observed and is_open(load) and name in SCHEDULED:
                    waited = values(outcome.records, SCHEDULED[name])
                    right = max(right, float(np.percentile(waited, 99.5)))
                    place.plot(*_distribution(waited), **_line(index) | {"linestyle": "--", "alpha": 0.7})
            place.set(xlabel=f"{title}, ms", ylabel="share of observations", ylim=(0, 1.02))
            place.set_xlim(0, 1.05 * right or 1)
        if axes.flat[0].lines:
            axes.flat[0].legend(loc="lower right")
    return figure


def draw_throughput(comparison: Comparison) -> Any:
    """Output tokens and requests per second under every load: medians with the lowest and highest repeat."""
    loads = list(dict.fromkeys(outcome.load for outcome in comparison.outcomes))
    names = list(comparison.header.contestants)
    width = 0.8 / len(names)
    with style():
        figure, axes = subplots(1, 2, height=3.6)
        for place, name in zip(axes, ("output_tokens_per_s", "requests_per_s"), strict=True):
            for outcome in comparison.outcomes:
                index = names.index(outcome.target)
                spread = outcome.spread(name)
                if spread:
                    error = [[spread.median - spread.low], [spread.high - spread.median]]
                    x = loads.index(outcome.load) + (index - (len(names) - 1) / 2) * width
                    colour = series(index)["color"]
                    ink = {"ecolor": colour, "capsize": 2, "error_kw": {"alpha": 0.6}}
                    place.bar(x, spread.median, width * 0.9, yerr=error, color=colour, alpha=0.85, **ink)
            place.set_xticks(range(len(loads)), [label(load, 24) for load in loads])
            place.set_ylabel(comparison.titles()[name])
        handles = [axes[0].bar(0, 0, color=series(index)["color"]) for index in range(len(names))]
        figure.legend(handles, [label(name) for name in names], loc="outside lower center", ncols=4)
    return figure


def draw_timeline(comparison: Comparison, load: str) -> Any:
    """The last repeat under one load: output tokens per second and requests under way, over its seconds."""
    with style():
        figure, axes = subplots(1, 2, height=3.2)
        drawn: list[tuple[Callable[..., tuple[list[float], list[float]]], str]] = [
            (tokens_over_time, "output tokens/s"),
            (concurrency_over_time, "requests under way"),
        ]
        for place, (derive, title) in zip(axes, drawn, strict=True):
            for index, outcome in enumerate(comparison.under(load)):
                seconds, counts = derive(_last(outcome))
                place.plot(seconds, counts, label=label(outcome.target), **_line(index))
            place.set(xlabel="seconds from the round's start", ylabel=title)
            place.set_ylim(bottom=0)
        axes[0].legend(loc="best")
    return figure


def _last(outcome: Outcome) -> Sequence[Any]:
    return outcome.rounds[max(outcome.rounds)]


def _line(index: int) -> dict[str, Any]:
    return series(index) | {"marker": None, "linewidth": 1.4}


def _distribution(observed: Sequence[float]) -> tuple[Any, Any]:
    """The empirical distribution, thinned to what a plot can show."""
    times = np.sort(np.asarray(observed))
    shares = np.arange(1, len(times) + 1) / len(times)
    if len(times) > MAX_POINTS:
        kept = np.unique(np.linspace(0, len(times) - 1, MAX_POINTS).astype(int))
        times, shares = times[kept], shares[kept]
    return np.concatenate([times[:1], times]), np.concatenate([[0.0], shares])
