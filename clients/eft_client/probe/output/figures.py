"""The figure of a probe's report: the measure by layer, for the expert and each control."""

from collections.abc import Sequence
from typing import Any

from eft_client.probe.changes import Changes
from eft_client.probe.output.tables import named
from eft_client.probe.summary import EXPERT, REFERENCE, SHUFFLED, TOKENS, Verdict
from eft_client.quality.statistics.bootstrap import Estimate
from eft_client.report.plots import label, series, style, subplots

__all__ = ["draw_by_layer"]

_APART = 0.12
_CHANCE = 6
_MOST_TICKS = 16


def draw_by_layer(verdict: Verdict, changes: Changes | None) -> Any:
    """The measure by layer with 95 % intervals; tokens, which have no layers, are a band."""
    others = [name for name in verdict.finding.probed if name not in (EXPERT, REFERENCE, TOKENS)]
    sources = [EXPERT, REFERENCE, *others, SHUFFLED]
    with style():
        figure, axes = subplots(width=8, height=3.8)
        for number, source in enumerate(sources):
            layers = [layer for name, layer in verdict.by_layer if name == source]
            shift = _APART * (number - (len(sources) - 1) / 2)
            found = [verdict.by_layer[source, layer] for layer in layers]
            _line(axes, [layer + shift for layer in layers], found, label=named(source), **series(number))
        tokens, look = verdict.by_layer[TOKENS, 0], series(len(sources))
        axes.axhspan(tokens.low, tokens.high, color=look["color"], alpha=0.15, linewidth=0)
        axes.axhline(tokens.value, color=look["color"], linewidth=1.1, label=named(TOKENS))
        chance = series(_CHANCE)["color"]
        axes.axhline(verdict.measure.chance, linestyle=":", linewidth=1, color=chance, label="chance")
        _ticks(axes, verdict, changes)
        axes.set(ylabel=label(f"{verdict.problem.target}: {verdict.measure.name}"))
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def _line(axes: Any, x: Sequence[float], found: Sequence[Estimate], **look: Any) -> None:
    below = [max(0.0, one.value - one.low) for one in found]
    above = [max(0.0, one.high - one.value) for one in found]
    axes.errorbar(x, [one.value for one in found], yerr=[below, above], capsize=2, linewidth=1.1, **look)


def _ticks(axes: Any, verdict: Verdict, changes: Changes | None) -> None:
    """The layers that there is room for; a triangle for those that changed most."""
    layers = list(verdict.finding.probed[EXPERT].by_layer)
    axes.set_xticks(layers[:: -(-len(layers) // _MOST_TICKS)])
    most = [layer for layer in layers if changes is not None and layer in changes.most]
    axes.set(xlabel="layer (▲: its parameters changed most)" if most else "layer")
    if most:
        place, colour = axes.get_xaxis_transform(), series(_CHANCE)["color"]
        axes.plot(most, [0.02] * len(most), "^", transform=place, color=colour, markersize=6)
