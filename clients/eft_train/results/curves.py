"""A training's curves: what was measured at checkpoints, the losses between, and a picture of both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from eft_train.checkpoints import POINT, Steps
from eft_train.measuring import Point

__all__ = ["draw", "losses", "points"]

_MOST_LOSSES = 200
_SERIES = {"loss": "loss", "rewards/margins": "margin", "learning_rate": "learning_rate"}

History = Sequence[Mapping[str, Any]]
Phases = Sequence[tuple[str, Steps, History]]
"""Of each phase its name, its steps, and the trainer's history."""


def points(phases: Phases) -> list[dict[str, Any]]:
    """The start and each checkpoint: examples seen, phase, the mean loss since the one before, what was measured."""
    found = []
    for name, steps, history in phases:
        by_step = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
        before = 0
        for entry in history:
            if POINT in entry:
                since = [loss for step, loss in by_step.items() if before < step <= entry["step"]]
                before = entry["step"]
                loss = fmean(since) if since else None
                found.append(
                    {
                        "examples": steps.seen(before),
                        "phase": name,
                        "loss": loss,
                        **asdict(Point(**entry[POINT])),
                    }
                )
    return found


def losses(phases: Phases) -> list[dict[str, Any]]:
    """The trainer's own numbers on its batches, as means over steps where there are many."""
    found = []
    for name, steps, history in phases:
        entries = [entry for entry in history if "loss" in entry]
        together = -(-len(entries) // _MOST_LOSSES)
        for first in range(0, len(entries), together or 1):
            some = entries[first : first + together]
            means = {
                key: fmean(entry[theirs] for entry in some)
                for theirs, key in _SERIES.items()
                if theirs in some[0]
            }
            found.append({"examples": steps.seen(some[-1]["step"]), "phase": name, **means})
    return found


def draw(curves: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw log-probabilities and margin over the examples seen; False where matplotlib is not installed."""
    if not curves or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    seen = [point["examples"] for point in curves]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    has_pairs = curves[0]["margin"] is not None
    left, *right = figure.subplots(1, 2 if has_pairs else 1, squeeze=False)[0]
    left.plot(seen, [point["logps_chosen"] for point in curves], marker=".", label="chosen")
    if has_pairs:
        left.plot(seen, [point["logps_rejected"] for point in curves], marker=".", label="rejected")
        right[0].plot(seen, [point["margin"] for point in curves], marker=".", color="tab:green")
        right[0].set(xlabel="examples seen", ylabel="margin, in nats")
    left.set(xlabel="examples seen", ylabel="log-probability, in nats")
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True
