"""Activations: what layers of members compute for the tokens of a scored completion, as requests and answers have it.

Token c's is the state after the member has read that token, so the engine reads the last token of such a request, too.
All of a request's numbers travel in one array: member by member, and layer by layer, of shape (C, H), or (1, H) if they
are pooled.

Shape suffixes: C completion tokens, H a member's hidden size, N all numbers of a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["POOLS", "SITES", "ActivationError", "Activations", "problem_as_array"]

SITES = ("residual", "mlp")
"""Where in a layer: what it adds up to, or what its feed-forward module gives."""

POOLS = ("last", "mean", "none")
"""Of which of the completion's tokens: of the last, the mean over all, or each."""


class ActivationError(ValueError):
    """A member's model does not have what was asked for, which only the model knows."""


@dataclass(frozen=True)
class Activations:
    """The activations that a scored request asks for.

    Attributes:
        members: their places.
        layers: of each of these members, from 0.
        site: one of SITES.
        pool: one of POOLS.
    """

    members: tuple[int, ...]
    layers: tuple[tuple[int, ...], ...]
    site: str = "residual"
    pool: str = "last"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Activations":
        """From the plain values of `dataclasses.asdict`, of which tuples may have become lists."""
        layers = tuple(tuple(own) for own in given["layers"])
        return cls(tuple(given["members"]), layers, given["site"], given["pool"])

    def rows(self, tokens: int) -> int:
        """The number of rows of each layer, for a completion of so many tokens."""
        return tokens if self.pool == "none" else 1

    def count(self, tokens: int, widths: Sequence[int]) -> int:
        """N.

        Args:
            tokens: C.
            widths: the hidden size of every member of the family, by place.
        """
        numbers = sum(
            len(own) * widths[member] for member, own in zip(self.members, self.layers, strict=True)
        )
        return self.rows(tokens) * numbers

    def split(self, found: Any, tokens: int, widths: Sequence[int]) -> dict[int, dict[int, np.ndarray]]:
        """Take the engine's array apart: float32 of shape (C, H) or (1, H) by member and layer.

        Args:
            found: what the engine sent.
            tokens: C.
            widths: as for `count`.

        Raises:
            ActivationError: the engine sent the reason why there are none.
        """
        if found.dtype == np.uint8:
            raise ActivationError(found.tobytes().decode())
        numbers_N, rows, begin = found.reshape(-1), self.rows(tokens), 0
        assert len(numbers_N) == self.count(tokens, widths), "the engine sends what was asked for"
        apart: dict[int, dict[int, np.ndarray]] = {}
        for member, own in zip(self.members, self.layers, strict=True):
            for layer in own:
                end = begin + rows * widths[member]
                apart.setdefault(member, {})[layer] = numbers_N[begin:end].reshape(rows, widths[member])
                begin = end
        return apart


def problem_as_array(problem: str) -> np.ndarray:
    """The reason why a request has no activations, in their place: uint8 of shape (1, …)."""
    return np.frombuffer(problem.encode(), dtype=np.uint8).reshape(1, -1)
