"""The conversation: questions, their answers by side, and the file that keeps them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eft_client.errors import WrongArgument
from eft_client.jsonl import json_value
from eft_client.text import decoded, shortened

__all__ = ["Conversation", "Reply", "Turn"]

MAX_FILE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what was said.
        model: the name that was asked.
        eft: the behaviour that the server applied, if it said.
    """

    text: str
    model: str
    eft: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Turn:
    """A question and its answers: one, or the left and the right one of a comparison."""

    question: str
    answers: tuple[Reply, ...]


@dataclass
class Conversation:
    """The turns so far, and the system message before them."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str, side: int = 0) -> list[dict[str, str]]:
        """The request's messages for this question, as one side of a comparison remembers the chat."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            answer = turn.answers[min(side, len(turn.answers) - 1)]
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": answer.text})
        return [*messages, {"role": "user", "content": question}]

    def save(self, path: Path) -> None:
        """Write the chat as JSON, over another saved chat at most.

        Raises:
            WrongArgument: Something else is there, or it cannot be written.
        """
        if path.exists():
            try:
                Conversation.load(path)
            except WrongArgument:
                raise WrongArgument(f"{path} is there and is no saved chat; choose another name") from None
        saved = _Saved(form="eft-chat-1", system=self.system, turns=[_turn(turn) for turn in self.turns])
        try:
            path.write_text(saved.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise WrongArgument(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read a chat that was saved.

        Raises:
            WrongArgument: It is not there, too large, or no saved chat.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise WrongArgument(f"{path} cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise WrongArgument(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        try:
            saved = _Saved.model_validate(json_value(decoded(content)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = shortened(".".join(map(str, first["loc"])), 80)
            raise WrongArgument(
                f"{path} is no saved chat: {place + ': ' if place else ''}{first['msg']}"
            ) from None
        except ValueError as error:
            raise WrongArgument(f"{path} is no saved chat: {error}") from None
        return cls(saved.system, [turn.turn() for turn in saved.turns])


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _SavedAnswer(_Strict):
    text: str
    model: str
    eft: dict[str, Any] | None = None


class _SavedTurn(_Strict):
    question: str
    answers: Annotated[list[_SavedAnswer], Field(min_length=1, max_length=2)]

    def turn(self) -> Turn:
        return Turn(self.question, tuple(Reply(a.text, a.model, a.eft) for a in self.answers))


class _Saved(_Strict):
    form: Literal["eft-chat-1"]
    system: str | None
    turns: list[_SavedTurn]


def _turn(turn: Turn) -> _SavedTurn:
    return TypeAdapter(_SavedTurn).validate_python(
        {"question": turn.question, "answers": [asdict(answer) for answer in turn.answers]}
    )
