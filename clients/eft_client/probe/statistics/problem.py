"""What a probe has to say, and of which rows.

Shape suffixes: R rows.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from eft_client.probe.statistics.measures import ACCURACY, AUC, PAIR_AUC, TAU, Measure

__all__ = ["Problem", "TargetKind"]


class TargetKind(StrEnum):
    """What a target is, which decides the probe and its measures."""

    NUMBER = "number"
    """Ridge regression; τ."""

    CLASS = "class"
    """Logistic regression; AUC, which does not depend on how many there are of each, and accuracy."""

    PAIR = "pair"
    """Logistic regression through the origin on differences of two answers; accuracy, and AUC."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Targets by row.

    Attributes:
        target: its name.
        kind: what it is.
        targets_R: numbers; of classes 1 and −1; of pairs 1 where the first of a difference is the chosen one, else −1.
        prompts_R: the place of each row's prompt among all prompts, from 0 on without gaps.
    """

    target: str
    kind: TargetKind
    targets_R: NDArray[np.float64]
    prompts_R: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.targets_R)

    @property
    def prompts(self) -> int:
        """How many different prompts there are."""
        return int(self.prompts_R.max()) + 1 if self.rows else 0

    @property
    def measures(self) -> tuple[Measure, ...]:
        """How probes are judged; the first is the one that findings are stated in."""
        by_kind = {
            TargetKind.NUMBER: (TAU,),
            TargetKind.CLASS: (AUC, ACCURACY),
            TargetKind.PAIR: (ACCURACY, PAIR_AUC),
        }
        return by_kind[self.kind]

    def shuffled(self, seed: int) -> "Problem":
        """The same rows with targets that have nothing to do with them.

        Numbers and classes change places; of a pair, a coin says which answer is the chosen one.
        """
        rng = np.random.default_rng((seed, 0x5EED))
        if self.kind is TargetKind.PAIR:
            return replace(self, targets_R=rng.choice([-1.0, 1.0], size=self.rows))
        return replace(self, targets_R=rng.permutation(self.targets_R))
