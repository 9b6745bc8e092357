"""One text of one prompt, and the sides that prompts are on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_client.bodies import ScoreItem
from eft_client.pairs.pair import Pair

__all__ = ["HELD_OUT", "SIDES", "TRAINING", "Place", "Text", "places"]

TRAINING, HELD_OUT = "training", "held-out"
SIDES = (TRAINING, HELD_OUT)

Place = tuple[str, int]
"""A pair's side, and its index there."""


@dataclass(frozen=True)
class Text:
    """What is scored.

    Attributes:
        kind: its kind's name.
        completion: its text, or its token ids.
        end: whether the end of the turn belongs to it; a generated text that was cut off has none.
    """

    kind: str
    completion: str | tuple[int, ...]
    end: bool

    def item(self, pair: Pair) -> ScoreItem:
        """As an item of a request."""
        return ScoreItem(completion=self.completion, end=self.end, **pair.context)

    def content(self, pair: Pair) -> dict[str, Any]:
        """What its scores depend on, beside the model."""
        completion = self.completion if isinstance(self.completion, str) else list(self.completion)
        return {**pair.context, "completion": completion, "end": self.end}

    @property
    def size_bytes(self) -> int:
        """At least as many as it has tokens."""
        text = self.completion
        return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else len(text)


def places(pairs: Mapping[str, Sequence[Pair]]) -> list[Place]:
    """Side and index of every pair, the sides in turn, so that an interrupted run has something of both."""
    longest = max((len(found) for found in pairs.values()), default=0)
    return [(side, index) for index in range(longest) for side in pairs if index < len(pairs[side])]
