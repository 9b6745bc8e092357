"""The squeezing effect (Ren & Sutherland, arXiv 2407.10490): DPO that makes its own chosen answers unlikely."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

__all__ = ["Squeezing", "squeezing"]

_SMOOTHED = 3
"""Over so many of the last points, or fewer, the log-probability is averaged."""

_SHARE = 0.0025
"""A fall by less than this share of the start is none."""

_SHARE_OF_BEST = 0.05
"""Nor is one by less than this share of the best checkpoint, which was picked for being high."""

_LEAST_FALL = 0.1
"""Nor is one by less than so many nats."""

Curve = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Squeezing:
    """How far the chosen answers fell while the margin rose.

    Attributes:
        phase: The phase in which they did.
        chosen_from: The mean log-probability of the chosen answers at its start, in nats; where they end likelier than
            that, at the best checkpoint, from which they fell.
        chosen_to: The same over the last checkpoints.
        margin_from: The mean margin there.
        margin_to: The same at its end.
        best: The examples seen at the checkpoint of this phase with the greatest margin among those whose chosen
            answers have not fallen; where all have, at that with the likeliest chosen answers.
        kept: Whether the chosen answers have not fallen there.
        held_out: Whether this was measured on held-out examples.
        prepared: Whether another phase came before, as in the recipe extend.
    """

    phase: str
    chosen_from: float
    chosen_to: float
    margin_from: float
    margin_to: float
    best: int
    kept: bool
    held_out: bool
    prepared: bool

    def as_json(self) -> dict[str, Any]:
        """The numbers and the words."""
        return asdict(self) | {"words": self.words}

    @property
    def words(self) -> str:
        """The warning."""
        measured = (
            "on held-out examples" if self.held_out else "on examples that were learnt, as none are held out"
        )
        best = (
            "the best checkpoint by margin that keeps the chosen answers is"
            if self.kept
            else "no checkpoint keeps the chosen answers; they are likeliest at"
        )
        return (
            f"squeezing: in {self.phase} the chosen answers' log-probability fell from {self.chosen_from:.1f} to "
            f"{self.chosen_to:.1f} nats ({measured}) while the margin rose from {self.margin_from:.1f} to "
            f"{self.margin_to:.1f}: the rejected answers became less likely, and so did the chosen ones, in favour of "
            f"answers that are in neither. Try {'' if self.prepared else 'the recipe extend, '}--set "
            f"{self.phase}.loss=ipo, or fewer steps; {best} after-{self.best:06}"
        )


def squeezing(curves: Curve, phases: Sequence[str], *, held_out: bool) -> Squeezing | None:
    """Look for it in the phases that compare pairs with a reference; the last one counts that shows it.

    Args:
        curves: The curves of `training.json`.
        phases: The names of those phases.
        held_out: Whether the curves were measured on held-out examples.
    """
    found = (_in_phase(curves, phase, held_out) for phase in reversed(phases))
    return next((squeezed for squeezed in found if squeezed is not None), None)


def _in_phase(curves: Curve, phase: str, held_out: bool) -> Squeezing | None:
    points = [point for point in curves if point["phase"] == phase]
    first = curves.index(points[0]) if points else 0
    start = points[0] if first == 0 else curves[first - 1]
    later = [point for point in points if point is not start]
    if not later or start["margin"] is None:
        return None
    ends = fmean(point["logps_chosen"] for point in later[-_SMOOTHED:])
    least = _least(start, _SHARE)
    if ends >= least:
        start = max(later, key=lambda point: point["logps_chosen"])
        least = _least(start, _SHARE_OF_BEST)
    if max(ends, later[-1]["logps_chosen"]) >= least or later[-1]["margin"] <= start["margin"]:
        return None
    standing = [point for point in later if point["logps_chosen"] >= least]
    best = (
        max(standing, key=lambda point: point["margin"])
        if standing
        else max(later, key=lambda point: point["logps_chosen"])
    )
    return Squeezing(
        phase=phase,
        chosen_from=start["logps_chosen"],
        chosen_to=ends,
        margin_from=start["margin"],
        margin_to=later[-1]["margin"],
        best=best["examples"],
        kept=bool(standing),
        held_out=held_out,
        prepared=first > 0,
    )


def _least(point: Mapping[str, Any], share: float) -> float:
    """The log-probability down to which the chosen answers count as no less likely than at a point."""
    logps = float(point["logps_chosen"])
    return logps - max(abs(logps) * share, _LEAST_FALL)
