"""Which step to serve: the earliest that is not surely worse than the best one, before squeezing sets in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eft_client.dynamics.statistics.curve import Curve
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["ServedStep", "accuracy_values", "choose"]


@dataclass(frozen=True)
class ServedStep:
    """The step to serve.

    Attributes:
        step: its place.
        best: the place of the best by the mean.
        behind: what the chosen step's mean is behind the best one's, with its interval; 0 where they are one.
        is_squeezed: whether squeezing has set in there, because it has at every step after the first.
    """

    step: int
    best: int
    behind: Estimate
    is_squeezed: bool


def choose(merit: Curve, since: int | None) -> ServedStep | None:
    """Choose a step after the first.

    Intervals of the differences from the best hold for all candidates at once (Bonferroni).

    Args:
        merit: What is better when higher: the margin, or the accuracy, of held-out prompts.
        since: The first step of squeezing; None where there is none.

    Returns:
        None where nothing can be compared: no prompt counts.
    """
    if not merit.prompts or not merit.last:
        return None
    before = range(1, merit.last + 1 if since is None else since)
    candidates = before or range(1, merit.last + 1)
    best = max(candidates, key=lambda step: float(merit.means_S[step]))
    among = max(1, len(candidates) - 1)
    for step in candidates:
        behind = merit.change(best, step, among=among)
        if step == best or not behind.high < 0:
            return ServedStep(step, best, behind, not before)
    raise AssertionError("the best is among the candidates")


def accuracy_values(margin_SP: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the margin is above 0, 0 where it is below, half where it is 0; NaN stays."""
    return np.where(np.isnan(margin_SP), np.nan, (np.sign(margin_SP) + 1) / 2)
