"""A file of pairs: prompts, each with a chosen and a rejected answer, or with one answer and its label."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from eft_client.jsonl import json_value, text_lines
from eft_client.pairs.errors import PairsError

__all__ = ["MAX_LINE_BYTES", "MAX_PAIRS", "Message", "Pair", "as_line", "read_pairs"]

MAX_PAIRS = 1_000_000
MAX_LINE_BYTES = 1 << 22
MAX_ID_CHARS = 200

Message = Mapping[str, Any]
"""One message of a chat, in OpenAI's form."""

Label = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt and its answers.

    Attributes:
        id: unique in a file.
        prompt: text that the answers continue, or the chat that they answer.
        chosen: the preferred answer; of a line without pairs, its completion.
        rejected: the other one; None where the file has completions only.
        chosen_rephrased: the same as chosen in other words, if the file has it.
        rejected_rephrased: the same as rejected in other words, if the file has it.
        label: what the file says of a completion.
    """

    id: str
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str | None = None
    chosen_rephrased: str | None = None
    rejected_rephrased: str | None = None
    label: Label | None = None

    @property
    def context(self) -> dict[str, Any]:
        """The prompt as a field of a request: `prompt`, or `messages`."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt}
        return {"messages": [dict(message) for message in self.prompt]}

    @property
    def question(self) -> str:
        """The prompt as people read it: the text, or the last message's."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


def _answer(value: Any) -> Any:
    """An answer's text, which TRL's conversational form wraps into a list of one message."""
    if not isinstance(value, list):
        return value
    if len(value) != 1 or not isinstance(value[0], Mapping) or value[0].get("role") != "assistant":
        raise ValueError(
            "expected text, or a list of one message of the assistant; "
            "a chat that precedes it belongs in `prompt`"
        )
    return value[0].get("content")


_Text = Annotated[str, Field(min_length=1, max_length=MAX_LINE_BYTES)]
_Answer = Annotated[_Text, BeforeValidator(_answer)]


def _name(value: Any) -> Any:
    """An id; numbers and the like, which count rows, are none, as for `eft train`."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS else None


class _Turn(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: _Text
    content: str


class _PairLine(BaseModel):
    """One line of a file of pairs; what else data sets have in a line is not read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: _Text | Annotated[list[_Turn], Field(min_length=1)]
    id: Annotated[str | None, BeforeValidator(_name)] = None
    chosen: _Answer | None = None
    rejected: _Answer | None = None
    chosen_rephrased: _Answer | None = None
    rejected_rephrased: _Answer | None = None
    completion: _Answer | None = None
    label: Label | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.completion is None) == (self.chosen is None):
            raise ValueError("exactly one of completion and chosen is needed")
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("chosen and rejected belong together")
        if self.completion is not None and (self.chosen_rephrased or self.rejected_rephrased):
            raise ValueError("chosen_rephrased and rejected_rephrased belong to chosen and rejected")
        return self

    def pair_of(self) -> Pair:
        """What the line says; without an id, one that follows from its content."""
        prompt = self.prompt
        turns = prompt if isinstance(prompt, str) else tuple(turn.model_dump() for turn in prompt)
        further = {
            "id",
            "chosen_rephrased",
            "rejected_rephrased",
            *(() if self.rejected is None else ("label",)),
        }
        content = self.model_dump_json(exclude=further)
        return Pair(
            id=self.id or hashlib.sha256(content.encode()).hexdigest()[:16],
            prompt=turns,
            chosen=self.chosen or self.completion or "",
            rejected=self.rejected,
            chosen_rephrased=self.chosen_rephrased,
            rejected_rephrased=self.rejected_rephrased,
            label=self.label if self.rejected is None else None,
        )


def read_pairs(path: Path) -> list[Pair]:
    """Read a JSONL file of pairs, as `eft train` takes and leaves them; empty lines are skipped.

    A line is `{"prompt", "chosen", "rejected"}`, with any of `id`, `chosen_rephrased` and `rejected_rephrased`; or
    `{"prompt", "completion"}`, with any of `id` and `label`; other keys are not read. A prompt is text or a list of
    messages, an answer is text or a list of the assistant's one message. A line that says the same as an earlier one,
    without an id, counts once.

    Raises:
        PairsError: The file cannot be read, is empty, or a line says something else; the message names it.
    """
    pairs: dict[str, Pair] = {}
    for number, text in text_lines(path, MAX_LINE_BYTES, PairsError):
        pair, named = _parsed(text, f"{path}, line {number}")
        if named and pair.id in pairs:
            raise PairsError(f"{path}, line {number}: the pair with id {pair.id!r} came before")
        pairs[pair.id] = pair
        if len(pairs) > MAX_PAIRS:
            raise PairsError(f"{path}: more than {MAX_PAIRS:,} pairs")
    if not pairs:
        raise PairsError(f"{path}: no pair in it")
    return list(pairs.values())


def as_line(pair: Pair) -> dict[str, Any]:
    """The pair as an object that `read_pairs` reads."""
    turns = pair.prompt if isinstance(pair.prompt, str) else [dict(turn) for turn in pair.prompt]
    line: dict[str, Any] = {"id": pair.id, "prompt": turns}
    if pair.rejected is None:
        line["completion"] = pair.chosen
    else:
        line |= {"chosen": pair.chosen, "rejected": pair.rejected}
    further = {name: getattr(pair, name) for name in ("chosen_rephrased", "rejected_rephrased", "label")}
    return line | {name: value for name, value in further.items() if value is not None}


def _parsed(text: str, place: str) -> tuple[Pair, bool]:
    """A line's pair, and whether the line names it."""
    try:
        value = json_value(text)
        line = _PairLine.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        found = json.dumps(first["input"], ensure_ascii=False, default=str)
        raise PairsError(f"{place}: {f'{where}: ' if where else ''}{reason}, not {found[:200]}") from None
    except ValueError as error:
        raise PairsError(f"{place}: {error}") from None
    return line.pair_of(), line.id is not None
