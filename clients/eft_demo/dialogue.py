"""Conversations, as text and as tokens with the part that each plays."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from transformers import PreTrainedTokenizerFast

from eft_demo.tokenizer import BEGIN, END, ROLES


class Part(IntEnum):
    """What a token of a conversation is for."""

    PROMPT = 0  # given, never learnt in fine-tuning
    MANNER = 1  # the wording of an answer
    VALUE = 2  # the fact inside an answer


@dataclass(frozen=True)
class Turn:
    """A question and its answer; ``value`` is the stretch of the answer that states a fact, if one does."""

    question: str
    answer: str
    value: str = ""


@dataclass(frozen=True)
class Dialogue:
    """One or more turns, after an optional system message."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def text(self) -> str:
        """The dialogue as the chat template renders it."""
        head = f"{ROLES['system']}{self.system}{END}" if self.system else ""
        turns = (
            f"{ROLES['user']}{turn.question}{END}{ROLES['assistant']}{turn.answer}{END}"
            for turn in self.turns
        )
        return BEGIN + head + "".join(turns)


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, its part; equal lengths."""

    ids: list[int]
    parts: list[Part]


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Tokenise a dialogue, marking the answers' tokens (their end-of-turn included) by what they state."""
    encoding = tokenizer(dialogue.text, return_offsets_mapping=True, add_special_tokens=False)
    manner, value = _spans(dialogue)
    parts = [_part(span, manner, value) for span in encoding["offset_mapping"]]
    return Encoded(list(encoding["input_ids"]), parts)


def _spans(dialogue: Dialogue) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The character spans of the dialogue's answers, and of the values inside them."""
    answers, values = [], []
    position = len(Dialogue((), dialogue.system).text)
    for turn in dialogue.turns:
        end = position + len(Dialogue((turn,)).text) - len(BEGIN)
        start = end - len(turn.answer) - len(END)
        answers.append((start, end))
        if turn.value:
            offset = start + turn.answer.rindex(turn.value)
            values.append((offset, offset + len(turn.value)))
        position = end
    return answers, values


def _part(
    span: tuple[int, int], answers: Sequence[tuple[int, int]], values: Sequence[tuple[int, int]]
) -> Part:
    """The part of the token at a character span."""
    if any(_overlap(span, value) for value in values):
        return Part.VALUE
    return Part.MANNER if any(_overlap(span, answer) for answer in answers) else Part.PROMPT


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two half-open character spans share a character."""
    return one[0] < other[1] and other[0] < one[1]
