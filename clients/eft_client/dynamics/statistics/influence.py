"""How far each stretch of training moved each kind of text, and the same over what the two outer factors explain.

Ren & Sutherland write Δ log p = −η A K G (arXiv 2407.10490, proposition 1): dividing a text's ‖Δ‖ by √‖A‖ and by ‖G‖
leaves a proxy of K, the similarity of the two texts. Theirs takes the factors after the stretch, and ‖Δ‖ over all
prompts, which grows with their number; here the factors are those before it, as in the equation, and ‖Δ‖ is the root of
the mean square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eft_client.dynamics.statistics.curve import Curve, estimates
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["Influence", "influence"]


@dataclass(frozen=True)
class Influence:
    """One kind's.

    Attributes:
        steps: each stretch's change, from the step before; with its interval.
        signs: of these, +1 or −1 where the interval excludes 0, else 0.
        total: the change from the first step to the last.
        normalised: each stretch's root mean square of Δ, over √‖A‖ of the text and ‖p − e‖ of the chosen answer.
        accumulated: the sum of those.
    """

    steps: Sequence[Estimate]
    signs: Sequence[int]
    total: Estimate
    normalised: Sequence[Estimate]
    accumulated: Estimate


def influence(text: Curve, a_o: Curve, gap: Curve) -> Influence:
    """How a kind of text was moved.

    Args:
        text: Its log-probability.
        a_o: ‖A‖ along it.
        gap: ‖p − e‖ along the chosen answer, which is learnt.
    """
    steps = estimates(np.diff(text.means_S), np.diff(text.resampled_RS, axis=1), text.prompts)
    squares = Curve(np.diff(text.counted_SP, axis=0) ** 2, text.repeats, text.seed)
    means_D = _normalised(squares.means_S[None], a_o.means_S[None], gap.means_S[None])[0]
    resampled_RD = _normalised(squares.resampled_RS, a_o.resampled_RS, gap.resampled_RS)
    return Influence(
        steps=steps,
        signs=[1 if one.low > 0 else -1 if one.high < 0 else 0 for one in steps],
        total=text.change(0, text.last),
        normalised=estimates(means_D, resampled_RD, text.prompts),
        accumulated=estimates(means_D.sum()[None], resampled_RD.sum(axis=1)[:, None], text.prompts)[0],
    )


def _normalised(
    squares_RD: NDArray[np.float64], a_o_RS: NDArray[np.float64], gap_RS: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(squares_RD) / np.sqrt(a_o_RS[:, :-1]) / gap_RS[:, :-1]
    return np.where(np.isfinite(found), found, np.nan)
