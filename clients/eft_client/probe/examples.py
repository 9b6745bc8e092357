"""From a file of pairs to the texts that are read, and the problems that a probe has to solve."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from eft_client.bodies import ScoreItem
from eft_client.pairs.pair import Pair
from eft_client.probe.errors import ProbeError

__all__ = ["TARGETS", "Example", "Examples", "ReadText"]

#: What a probe can be asked for, and whether it is asked about single tokens.
TARGETS = {"preference": False, "reward": False, "label": False, "token-reward": True}


@dataclass(frozen=True, kw_only=True)
class ReadText:
    """A prompt and one answer to it.

    Attributes:
        key: what its scores are found by.
        prompt: the place of its prompt among the different ones.
        item: what the server is asked.
    """

    key: str
    prompt: int
    item: ScoreItem


@dataclass(frozen=True, kw_only=True)
class Example:
    """A line of the data, as places among the texts.

    Attributes:
        chosen: the preferred answer, or the only one.
        rejected: the other one.
        label: what the data says of an only one.
    """

    chosen: int
    rejected: int | None
    label: float | None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The data.

    Attributes:
        texts: every different one once.
        examples: the lines, less pairs of equal answers.
        prompts: the number of different prompts.
        alike: how many pairs of equal answers were left out.
    """

    texts: Sequence[ReadText]
    examples: Sequence[Example]
    prompts: int
    alike: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], *, end: bool = True) -> "Examples":
        """Take pairs apart.

        Args:
            pairs: The lines.
            end: Whether the token that ends the turn is part of an answer.

        Raises:
            ProbeError: A label is no number, or nothing is left.
        """
        texts, prompts = dict[str, ReadText](), dict[str, int]()
        places, examples = dict[str, int](), list[Example]()

        def place(pair: Pair, answer: str) -> int:
            prompt = prompts.setdefault(_digest(pair.context), len(prompts))
            text = _text(pair, answer, prompt, end=end)
            texts.setdefault(text.key, text)
            return places.setdefault(text.key, len(places))

        different = [pair for pair in pairs if pair.chosen != pair.rejected]
        for pair in different:
            rejected = None if pair.rejected is None else place(pair, pair.rejected)
            examples.append(
                Example(chosen=place(pair, pair.chosen), rejected=rejected, label=_label_of(pair))
            )
        if not examples:
            raise ProbeError(f"none of {len(pairs)} pairs has two different answers")
        return cls(
            texts=list(texts.values()),
            examples=examples,
            prompts=len(prompts),
            alike=len(pairs) - len(different),
        )

    @cached_property
    def repeated(self) -> int:
        """How many texts have an answer that a text with another prompt has, too."""
        counts = Counter(str(text.item.completion) for text in self.texts)
        return sum(counts[str(text.item.completion)] > 1 for text in self.texts)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the texts."""
        return hashlib.sha256("".join(text.key for text in self.texts).encode()).hexdigest()

    def require(self, target: str) -> None:
        """Find out whether the data has what a target needs.

        Raises:
            ProbeError: It does not; or there is no such target.
        """
        if target not in TARGETS:
            raise ProbeError(f"target {target!r}: expected one of {', '.join(TARGETS)}")
        pairs = sum(example.rejected is not None for example in self.examples)
        if target == "preference" and pairs < len(self.examples):
            raise ProbeError(
                f"preference: {len(self.examples) - pairs} lines have no pair; expected chosen and rejected"
            )
        missing = sum(example.label is None for example in self.examples)
        if target == "label" and missing:
            raise ProbeError(
                f"label: {missing} lines have none; expected prompt, completion and label in each"
            )

    @property
    def default_target(self) -> str:
        """What the data is for: preference of pairs, labels where each line has one, else the implicit reward."""
        if all(example.rejected is not None for example in self.examples):
            return "preference"
        return "label" if all(example.label is not None for example in self.examples) else "reward"


def _text(pair: Pair, answer: str, prompt: int, *, end: bool) -> ReadText:
    item = ScoreItem(completion=answer, end=end, **pair.context)
    key = _digest({"context": pair.context, "completion": answer, "end": end})
    return ReadText(key=key, prompt=prompt, item=item)


def _label_of(pair: Pair) -> float | None:
    if pair.label is None:
        return None
    try:
        label = math.nan if isinstance(pair.label, str) else float(pair.label)
    except OverflowError:
        label = math.inf
    if not math.isfinite(label):
        raise ProbeError(f"{pair.id}: label {pair.label!r:.100}; expected 0, 1 or another number")
    return label


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
