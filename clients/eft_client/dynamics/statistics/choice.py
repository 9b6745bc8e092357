"""Which step to serve: the earliest that is not surely worse than the best one, before squeezing sets in.

A margin can be had by making the rejected answer impossible and the chosen one unlikely, too, and over a weight it
grows without end. So steps at which the chosen answers are surely less likely than at the first one do not count.
"""

import math
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
        loses: whether the chosen answers are surely less likely there than at the first step, because they are at every
            step that could have been chosen.
        without_losing: whether steps were passed over for that.
        among: how many differences are judged at once, if prompts are too few for these to have intervals; then the
            step is the best one, whatever an earlier one is worth. Else 0.
    """

    step: int
    best: int
    behind: Estimate
    is_squeezed: bool
    loses: bool
    without_losing: bool
    among: int = 0


def choose(merit: Curve, since: int | None, chosen: Curve) -> ServedStep | None:
    """Choose a step after the first.

    Intervals of the differences from the best, and from the first step, hold for all steps at once (Bonferroni).

    Args:
        merit: What is better when higher: the margin, or the accuracy, of held-out prompts.
        since: The first step of squeezing; None where there is none.
        chosen: Log-probability of the chosen answers.

    Returns:
        None where nothing can be compared: no prompt counts.
    """
    if not merit.prompts or not merit.last:
        return None
    steps = range(1, merit.last + 1)
    before = steps if since is None else range(1, since)
    losing = {step for step in steps if chosen.change(0, step, among=len(steps)).high < 0}
    keeping = [step for step in before if step not in losing]
    candidates = keeping or before or steps
    best = max(candidates, key=lambda step: float(merit.means_S[step]))
    among = max(1, len(candidates) - 1)
    behind = {step: merit.change(best, step, among=among) for step in candidates}
    unknown = any(math.isnan(one.high) for step, one in behind.items() if step != best)
    step = best if unknown else next(step for step in candidates if not behind[step].high < 0)
    return ServedStep(
        step=step,
        best=best,
        behind=behind[step],
        is_squeezed=not before,
        loses=step in losing,
        without_losing=0 < len(keeping) < len(before),
        among=among if unknown else 0,
    )


def accuracy_values(margin_SP: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the margin is above 0, 0 where it is below, half where it is 0; NaN stays."""
    return np.where(np.isnan(margin_SP), np.nan, (np.sign(margin_SP) + 1) / 2)
