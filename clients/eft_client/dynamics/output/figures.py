"""The figures of a report: curves, squeezing, margins, signs and influence."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eft_client.dynamics.axis import Axis
from eft_client.dynamics.measures import QUANTITIES
from eft_client.dynamics.summary import AxisSummary, SideSummary
from eft_client.dynamics.texts.kinds import KINDS, kind_named, label_of
from eft_client.quality.statistics.bootstrap import Estimate
from eft_client.report.plots import label, series, style, subplots

__all__ = ["draw_changes", "draw_influence", "draw_levels", "draw_margin", "draw_signs", "draw_squeezing"]

MOST_NUMBERS = 10
_LABELS = {one.name: one.label for one in QUANTITIES}
#: No two kinds that share axes look alike: the answers of the pair, and the others with the chosen one.
_LOOKS = dict(zip((kind.name for kind in KINDS), map(series, (0, 5, 1, 4, 2, 3, 6, 4, 1)), strict=True))
_ARGMAX: dict[str, Any] = {"color": "#666666", "marker": ".", "linestyle": "-"}
_UP = "#56B4E9"
_SIGNS = {1: (_UP, "+"), -1: ("#E69F00", "−"), 0: ("#88888822", "·")}
_SIDE_DASHES = {"training": "--", "held-out": "-"}


def draw_changes(one: AxisSummary, quantity: str) -> Any:
    """Changes from the first step: above, the pair's own answers and the argmax; below, the other texts and chosen."""
    with style():
        figure, axes = subplots(2, len(one.sides), width=9.6, height=6.4)
        for column, side in enumerate(one.sides.values()):
            upper, lower = np.atleast_2d(axes.reshape(2, -1))[:, column]
            own = [kind for kind in side.kinds if not kind_named(kind).untaught]
            others = ["chosen", *(kind for kind in side.kinds if kind_named(kind).untaught)]
            for kind in own:
                _band(upper, one.axis, side.changes[kind, quantity], kind_named(kind).label, **_LOOKS[kind])
            argmax = quantity.replace("total", "argmax").replace("per_token", "argmax_per_token")
            _band(upper, one.axis, side.changes["chosen", argmax], "argmax along chosen", **_ARGMAX)
            for kind in others:
                _band(lower, one.axis, side.changes[kind, quantity], kind_named(kind).label, **_LOOKS[kind])
            upper.set(title=f"{side.side}, {side.prompts} prompts", ylabel=f"Δ {_LABELS[quantity]}, nats")
            lower.set(xlabel=label(one.axis.label), ylabel=f"Δ {_LABELS[quantity]}, nats")
            _finish(one, side, upper, lower)
        return figure


def draw_levels(one: AxisSummary, quantity: str) -> Any:
    """Small multiples: each kind of text in its own axes, training prompts dashed."""
    kinds = one.deciding.kinds
    rows = (len(kinds) + 3) // 3
    with style():
        figure, axes = subplots(rows, 3, width=9.6, height=2.1 * rows)
        places = list(np.asarray(axes).flat)
        for place, kind in zip(places, kinds, strict=False):
            _by_side(place, one, kind, quantity, _LOOKS[kind]["color"])
            place.set_title(kind_named(kind).label)
        argmax = quantity.replace("total", "argmax").replace("per_token", "argmax_per_token")
        _by_side(places[len(kinds)], one, "chosen", argmax, _ARGMAX["color"])
        places[len(kinds)].set_title("argmax along chosen")
        for place in places[len(kinds) + 1 :]:
            place.axis("off")
        places[0].legend(fontsize=7)
        return figure


def draw_squeezing(one: AxisSummary) -> Any:
    """Where probability went: the chosen answers against the rest, and how peaky the rows along them are."""
    with style():
        figure, axes = subplots(2, 2, width=9.6, height=6)
        side = one.deciding
        for kind, name, text in (("chosen", "total", "chosen"), ("chosen", "argmax", "argmax along chosen")):
            look = _LOOKS["chosen"] if name == "total" else _ARGMAX
            _band(axes[0, 0], one.axis, side.changes[kind, name], text, **look)
        for kind in side.squeezing.others:
            _band(axes[0, 0], one.axis, side.changes[kind, "total"], kind_named(kind).label, **_LOOKS[kind])
        axes[0, 0].set(title=f"{side.side} prompts", ylabel="Δ log-probability, nats")
        for place, name in ((axes[0, 1], "a_o"), (axes[1, 0], "log_rest"), (axes[1, 1], "entropy")):
            _by_side(place, one, "chosen", name, _LOOKS["chosen"]["color"])
            place.set(title=f"{_LABELS[name]} along chosen", xlabel=label(one.axis.label))
        _finish(one, side, axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1])
        return figure


def draw_margin(one: AxisSummary) -> Any:
    """The implicit reward's margin and accuracy by side."""
    with style():
        figure, axes = subplots(1, 2, width=9.6, height=3.2)
        for number, side in enumerate(one.sides.values()):
            for place, found in zip(axes, (side.margin, side.accuracy), strict=True):
                _band(place, one.axis, found, side.side, **series(number))
        axes[0].set(title="margin of the implicit reward", ylabel="nats", xlabel=label(one.axis.label))
        axes[1].set(
            title="accuracy", ylabel="share above 0", xlabel=label(one.axis.label), ylim=(-0.02, 1.02)
        )
        axes[0].legend(fontsize=7)
        return figure


def draw_signs(one: AxisSummary) -> Any:
    """The sign of every stretch's change of every kind; grey where the interval contains 0."""
    with style():
        sides = list(one.sides.values())
        rows = max(len(side.influence) for side in sides)
        figure, axes = subplots(1, len(sides), width=9.6, height=0.32 * rows + 1.2)
        for place, side in zip(np.atleast_1d(axes), sides, strict=True):
            for row, found in enumerate(side.influence.values()):
                for column, sign in enumerate(found.signs):
                    _tile(place, column, row, *_SIGNS[sign])
            _grid(place, one.axis, [label_of(kind) for kind in side.influence])
            place.set_title(f"{side.side} prompts")
        return figure


def draw_influence(one: AxisSummary) -> Any:
    """Each kind's total change by side, and each stretch's normalised influence on the side that decides."""
    deciding = one.deciding
    kinds = list(deciding.influence)
    with style():
        figure, (bars, tiles) = subplots(1, 2, width=9.6, height=0.36 * len(kinds) + 1.4)
        height = 0.8 / len(one.sides)
        for number, side in enumerate(one.sides.values()):
            totals = [side.influence[kind].total for kind in kinds]
            y = np.arange(len(kinds)) + (number - (len(one.sides) - 1) / 2) * height
            look = {"color": series(number)["color"], "error_kw": {"linewidth": 0.8, "ecolor": "0.5"}}
            values = [total.value for total in totals]
            bars.barh(y, values, height, xerr=_distances(totals), label=side.side, **look)
        bars.set_yticks(range(len(kinds)), [label_of(kind) for kind in kinds])
        bars.invert_yaxis()
        bars.set(title="total change", xlabel="Δ log-probability, nats")
        bars.legend(fontsize=7)
        _normalised(tiles, one.axis, deciding)
        return figure


def _normalised(axes: Any, axis: Axis, side: SideSummary) -> None:
    found = {kind: [one.value for one in each.normalised] for kind, each in side.influence.items()}
    largest = max(
        (value for values in found.values() for value in values if math.isfinite(value)), default=1.0
    )
    for row, values in enumerate(found.values()):
        for column, value in enumerate(values):
            text = f"{value:.2f}" if len(values) <= MOST_NUMBERS else ""
            share = value / (largest or 1.0)
            _tile(axes, column, row, _UP, text, alpha=0.05 + 0.6 * share if math.isfinite(share) else 0.0)
    _grid(axes, axis, ["" for _ in found])
    axes.set_title(f"normalised influence, {side.side} prompts")


def _tile(axes: Any, column: int, row: int, colour: str, text: str, *, alpha: float = 1.0) -> None:  # noqa: PLR0913
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, row), 0.94, 0.9, color=colour, linewidth=0, alpha=alpha))
    axes.text(column + 0.47, row + 0.47, text, ha="center", va="center", fontsize=7)


def _grid(axes: Any, axis: Axis, names: Sequence[str]) -> None:
    """Axes of tiles: rows with these names, columns of stretches."""
    axes.set(xlim=(0, len(axis.steps) - 1), ylim=(len(names), 0))
    axes.set_yticks(np.arange(len(names)) + 0.45, names)
    _stretches(axes, axis)
    axes.grid(visible=False)


def _stretches(axes: Any, axis: Axis) -> None:
    """Ticks of stretches, named by their ends: not more than about eight."""
    stops = [step.x for step in axis.steps[1:]]
    shown = range(0, len(stops), max(1, len(stops) // 8))
    axes.set_xticks([place + 0.5 for place in shown], [f"{stops[place]:g}" for place in shown], fontsize=7)
    axes.set_xlabel(f"up to {label(axis.label)}")


def _by_side(axes: Any, one: AxisSummary, kind: str, quantity: str, colour: str) -> None:
    for side in one.sides.values():
        if (kind, quantity) in side.levels:
            look = {"color": colour, "marker": ".", "linestyle": _SIDE_DASHES[side.side]}
            _band(axes, one.axis, side.levels[kind, quantity], side.side, **look)


def _band(axes: Any, axis: Axis, found: Sequence[Estimate], named: str, **look: Any) -> None:
    """A curve with its interval as a band."""
    x = [step.x for step in axis.steps]
    axes.plot(x, [one.value for one in found], label=named, linewidth=1.2, markersize=3, **_without(look))
    axes.fill_between(
        x,
        [one.low for one in found],
        [one.high for one in found],
        color=look["color"],
        alpha=0.15,
        linewidth=0,
    )


def _without(look: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in look.items() if key != "markersize"}


def _finish(one: AxisSummary, side: SideSummary, *places: Any) -> None:
    """A line where squeezing sets in, and a legend."""
    for place in places:
        if side.squeezing.sets_in is not None:
            x = one.axis.steps[side.squeezing.sets_in].x
            place.axvline(x, color="#999999", linestyle=":", linewidth=1)
        place.legend(fontsize=7)


def _distances(found: Sequence[Estimate]) -> list[list[float]]:
    return [
        [max(0.0, one.value - one.low) for one in found],
        [max(0.0, one.high - one.value) for one in found],
    ]
