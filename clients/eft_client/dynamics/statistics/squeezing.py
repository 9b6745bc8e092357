"""Squeezing: whether training drove probability off all texts, the preferred one among them, into the likeliest.

The signature (Ren & Sutherland, arXiv 2407.10490, section 5.3) has four signs, and each of them alone means something
else: the chosen answer ends below its best; the likeliest continuation of it rises meanwhile; so does the norm of
A = I − 1 pᵀ, that is, rows grow peaky; and texts that training has no reason to touch fall.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eft_client.dynamics.statistics.curve import Curve
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["Sign", "Squeezing", "squeezing"]


@dataclass(frozen=True)
class Sign:
    """One of the four.

    Attributes:
        name: what it says, such as "the chosen answer falls".
        change: from the peak to the last step.
        holds: whether the change's whole interval is on the sign's side of 0.
    """

    name: str
    change: Estimate
    holds: bool


@dataclass(frozen=True)
class Squeezing:
    """What became of the four signs.

    Attributes:
        peak: the step from which changes count: that at which the chosen answer is likeliest; the first one where that
            is the last.
        since: the first step from which on it stays surely below that; None where it does not end there.
        signs: the four.
        others: by kind, the change of the texts that training has no reason to touch.
    """

    peak: int
    since: int | None
    signs: tuple[Sign, ...]
    others: Mapping[str, Estimate]

    @property
    def is_unknown(self) -> bool:
        """Whether there are too few prompts for the fall to have an interval."""
        return math.isnan(self.signs[0].change.low)

    @property
    def is_complete(self) -> bool:
        """Whether all four signs hold."""
        return all(sign.holds for sign in self.signs)

    @property
    def sets_in(self) -> int | None:
        """The step at which squeezing sets in; None where not all four signs hold."""
        return self.since if self.is_complete else None

    @property
    def missing(self) -> Sequence[Sign]:
        """Those that do not hold."""
        return [sign for sign in self.signs if not sign.holds]


def squeezing(chosen: Curve, argmax: Curve, a_o: Curve, others: Mapping[str, Curve]) -> Squeezing:
    """Look for the four signs.

    The peak is picked for being the highest, so the fall from it has to hold for all steps that could have been picked:
    its interval is as much wider (Bonferroni).

    Args:
        chosen: Log-probability of the chosen answers.
        argmax: The likeliest tokens' log-probability along them.
        a_o: The norm of A along them.
        others: By kind, log-probability of the texts that training has no reason to touch.
    """
    last, among = chosen.last, max(1, chosen.last)
    peak = int(np.argmax(chosen.means_S))
    fall = chosen.change(peak, last, among=among)
    falls = peak < last and fall.high < 0
    since = _since(chosen, peak, among) if falls else None
    start = peak if peak < last else 0
    together = Curve(_mean_of(others), chosen.repeats, chosen.seed)
    up, norm, rest = (curve.change(start, last) for curve in (argmax, a_o, together))
    signs = (
        Sign("the chosen answer falls", fall, falls),
        Sign("its likeliest continuation rises", up, up.low > 0),
        Sign("rows grow peaky (‖A‖ rises)", norm, norm.low > 0),
        Sign("other texts fall", rest, rest.high < 0),
    )
    return Squeezing(start, since, signs, {kind: one.change(start, last) for kind, one in others.items()})


def _since(chosen: Curve, peak: int, among: int) -> int:
    """The first step from which on the curve stays surely below its peak."""
    first = chosen.last
    while first - 1 > peak and chosen.change(peak, first - 1, among=among).high < 0:
        first -= 1
    return first


def _mean_of(others: Mapping[str, Curve]) -> NDArray[np.float64]:
    """A prompt's mean over kinds, of those that it has."""
    stacked_KSP = np.stack([curve.counted_SP for curve in others.values()])
    counted = ~np.isnan(stacked_KSP)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(stacked_KSP, axis=0) / counted.sum(axis=0))
