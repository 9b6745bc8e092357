"""From sums over tokens to one number of a text, and to arrays of [steps, prompts].

A row is a distribution p over V tokens that predicts y; e is y's one-hot vector. Ren & Sutherland (arXiv 2407.10490,
section 3) write the change of log p at one text, by a step on another, as A · K · G: A = I − 1 pᵀ belongs to the text
that is looked at, and G = p − e to the one that is learnt. Their norms are ‖A‖² = V ‖p‖² + V − 2 and
‖p − e‖² = ‖p‖² − 2 p(y) + 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eft_client.dynamics.scores import Sums

__all__ = ["QUANTITIES", "Measured", "Quantity", "measured", "quantities_of"]


@dataclass(frozen=True)
class Quantity:
    """One number of a text.

    Attributes:
        name: in files.
        label: in figures and tables.
        meaning: what it is, in a line.
    """

    name: str
    label: str
    meaning: str


QUANTITIES = (
    Quantity("total", "log-probability", "log-probability of the text, summed over its tokens, in nats"),
    Quantity("per_token", "log-probability per token", "the same over the number of tokens"),
    Quantity("argmax", "argmax", "log-probability of the likeliest token, summed along the text"),
    Quantity("argmax_per_token", "argmax per token", "the same over the number of tokens"),
    Quantity("entropy", "entropy", "mean entropy of the rows along the text, in nats"),
    Quantity("log_rest", "log(1 − p max)", "mean log-probability of anything but the likeliest token"),
    Quantity("a_o", "‖A‖", "Frobenius norm of A = I − 1 pᵀ for the mean ‖p‖ along the text"),
    Quantity(
        "gap", "‖p − e‖", "mean distance of the rows along the text from the one-hot vector of its token"
    ),
    Quantity("energy", "1 − p", "mean probability of anything but the text’s own token"),
)


def quantities_of(sums: Sums, vocabulary: int) -> dict[str, float]:
    """Every quantity of one text under one model.

    Args:
        sums: The text's.
        vocabulary: V, over how many tokens the rows are distributions.
    """
    n = sums.tokens
    return {
        "total": sums.total,
        "per_token": sums.total / n,
        "argmax": sums.argmax,
        "argmax_per_token": sums.argmax / n,
        "entropy": sums.entropy / n,
        "log_rest": sums.log_rest / n,
        "a_o": math.sqrt(vocabulary * (sums.norm / n) ** 2 + vocabulary - 2),
        "gap": sums.gap / n,
        "energy": 1 - sums.label / n,
    }


@dataclass(frozen=True)
class Measured:
    """The quantities of one side's texts.

    Attributes:
        prompts: the pairs' ids.
        values: by kind and quantity, [steps, prompts]; NaN where a prompt has no such text, or its number is not
            finite.
        not_finite: how many numbers were left out for that.
    """

    prompts: Sequence[str]
    values: Mapping[tuple[str, str], NDArray[np.float64]]
    not_finite: int

    @property
    def kinds(self) -> list[str]:
        """The kinds that any prompt has."""
        return list(dict.fromkeys(kind for kind, _ in self.values))


def measured(
    prompts: Sequence[str],
    steps: Sequence[str],
    sums: Mapping[tuple[str, str], Mapping[str, Sums]],
    vocabulary: int,
) -> Measured:
    """Arrange the sums of a side's texts.

    Args:
        prompts: The pairs' ids.
        steps: The steps' names.
        sums: By pair's id and kind, then by step.
        vocabulary: Over how many tokens the rows are distributions.
    """
    kinds = dict.fromkeys(kind for _, kind in sums)
    shape = (len(steps), len(prompts))
    values = {(kind, one.name): np.full(shape, np.nan) for kind in kinds for one in QUANTITIES}
    columns, rows = {name: i for i, name in enumerate(prompts)}, {name: i for i, name in enumerate(steps)}
    for (prompt, kind), by_step in sums.items():
        for step, one in by_step.items():
            for name, value in quantities_of(one, vocabulary).items():
                values[kind, name][rows[step], columns[prompt]] = value
    infinite = sum(int(np.isinf(found).sum()) for found in values.values())
    cleaned = {place: np.where(np.isinf(found), np.nan, found) for place, found in values.items()}
    return Measured(prompts, cleaned, infinite)
