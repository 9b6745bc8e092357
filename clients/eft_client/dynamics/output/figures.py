"""The figures of a report: curves, squeezing, margins, signs and influence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eft_client.dynamics.axis import Axis
from eft_client.dynamics.measures import QUANTITIES
from eft_client.dynamics.summary import AxisSummary, SideSummary
from eft_client.dynamics.texts.kinds import KINDS, kind_named
from eft_client.quality.statistics.bootstrap import Estimate
from eft_client.report.plots import label, series, style, subplots

__all__ = ["draw_changes", "draw_influence", "draw_levels", "draw_margin", "draw_signs", "draw_squeezing"]

_LABELS = {one.name: one.label for one in QUANTITIES}
_LOOKS = {kind.name: series(place) for place, kind in enumerate(KINDS)}
_ARGMAX: dict[str, Any] = {"color": "#666666", "marker": ".", "linestyle": "-"}
_UP, _DOWN, _UNSURE = "#0072B2", "#D55E00", "#88888822"
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
        rows = max(len(side.kinds) for side in sides) + 1
        figure, axes = subplots(1, len(sides), width=9.6, height=0.32 * rows + 1.2)
        for place, side in zip(np.atleast_1d(axes), sides, strict=True):
            named = [(kind_named(kind).label, side.influence[kind].signs) for kind in side.kinds]
            _signs(place, one.axis, named)
            place.set_title(f"{side.side} prompts")
        return figure


def draw_influence(one: AxisSummary) -> Any:
    """Each kind's total change, and each stretch's normalised influence."""
    side = one.deciding
    kinds = side.kinds
    with style():
        figure, (bars, heat) = subplots(1, 2, width=9.6, height=0.36 * len(kinds) + 1.4)
        height = 0.8 / len(one.sides)
        for number, each in enumerate(one.sides.values()):
            totals = [each.influence[kind].total for kind in kinds if kind in each.influence]
            y = np.arange(len(totals)) + (number - (len(one.sides) - 1) / 2) * height
            bars.barh(
                y,
                [total.value for total in totals],
                height,
                xerr=_distances(totals),
                color=series(number)["color"],
                label=each.side,
                error_kw={"linewidth": 0.8},
            )
        bars.set_yticks(range(len(kinds)), [kind_named(kind).label for kind in kinds])
        bars.invert_yaxis()
        bars.set(title="total change", xlabel="Δ log-probability, nats")
        bars.legend(fontsize=7)
        _heat(heat, one.axis, side, kinds)
        return figure


def _heat(axes: Any, axis: Axis, side: SideSummary, kinds: Sequence[str]) -> None:
    found = np.array([[one.value for one in side.influence[kind].normalised] for kind in kinds])
    mesh = axes.pcolormesh(found, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, ["" for _ in kinds])
    axes.invert_yaxis()
    _stretches(axes, axis)
    axes.set_title(f"normalised influence, {side.side}")
    axes.grid(visible=False)


def _signs(axes: Any, axis: Axis, named: Sequence[tuple[str, Sequence[int]]]) -> None:
    from matplotlib.patches import Rectangle

    for row, (_, signs) in enumerate(named):
        for column, sign in enumerate(signs):
            colour = {1: _UP, -1: _DOWN, 0: _UNSURE}[sign]
            axes.add_patch(Rectangle((column, row), 0.94, 0.9, color=colour, linewidth=0))
            text = {1: "+", -1: "−", 0: "·"}[sign]
            axes.text(column + 0.47, row + 0.47, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, len(axis.steps) - 1), ylim=(len(named), 0))
    axes.set_yticks(np.arange(len(named)) + 0.45, [text for text, _ in named])
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
        if side.squeezing.is_complete and side.squeezing.since is not None:
            x = one.axis.steps[side.squeezing.since].x
            place.axvline(x, color="#999999", linestyle=":", linewidth=1)
        place.legend(fontsize=7)


def _distances(found: Sequence[Estimate]) -> list[list[float]]:
    return [
        [max(0.0, one.value - one.low) for one in found],
        [max(0.0, one.high - one.value) for one in found],
    ]
