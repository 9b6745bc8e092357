"""The forms of a row of data: pairs or single answers, text or conversations, HH-rlhf's dialogues."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eft_server.errors import shown

__all__ = ["EmptyAnswer", "Example", "Message", "RowError", "example_of", "prompt_key"]

Message = Mapping[str, str]
"""One message of a conversation: its role and its content."""

Prompt = str | tuple[Message, ...]

_ROLES = ("system", "user", "assistant")
_REPHRASED = ("chosen_rephrased", "rejected_rephrased")

_FORMS = "{prompt, chosen, rejected}, {prompt, completion}, {messages}, or HH-rlhf's {chosen, rejected}"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


class RowError(ValueError):
    """A row is not in one of the forms; the message begins with the field."""


class EmptyAnswer(RowError):
    """A row has no answer to learn."""


@dataclass(frozen=True)
class Example:
    """A prompt with one answer, or with two of which one was preferred.

    Attributes:
        id: Unique in a data set.
        prompt: Text that the answers continue, or the conversation that they answer.
        chosen: The answer, or the preferred one.
        rejected: The other one; None where there is one only.
        kept: Further keys of the row, which training does not read and `eft dynamics` and `eft probe` do.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is a conversation."""
        return not isinstance(self.prompt, str)

    def as_json(self) -> dict[str, Any]:
        """The example as a row, in the form that this module reads."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(message) for message in self.prompt]
        if self.rejected is None:
            answers: dict[str, Any] = {"completion": self.chosen}
        else:
            answers = {"chosen": self.chosen, "rejected": self.rejected}
        return {"id": self.id, "prompt": prompt, **answers, **self.kept}


def prompt_key(prompt: Prompt) -> str:
    """The same text for the same prompt."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def example_of(row: Any, usual_id: str, *, hh_as_text: bool) -> Example:
    """Read a row.

    Args:
        row: A JSON object, in any of the forms.
        usual_id: The id of a row that has none.
        hh_as_text: Leave a dialogue of HH-rlhf as it is, for models without a chat template.

    Raises:
        RowError: It is in none of the forms.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"holds {shown(row)}, not an object; expected {_FORMS}")
    prompt, chosen, rejected = _parts(row, hh_as_text)
    kept = _kept_of_one(row) if rejected is None else _kept_of_two(row)
    return Example(_id(row, usual_id), prompt, chosen, rejected, kept)


def _kept_of_one(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"label": row["label"]} if isinstance(row.get("label"), bool | int | float | str) else {}


def _kept_of_two(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _answer(name, row[name]) for name in _REPHRASED if row.get(name) is not None}


def _id(row: Mapping[str, Any], usual: str) -> str:
    for key in ("id", "prompt_id"):
        value = row.get(key)
        if isinstance(value, str) and 0 < len(value) <= 200:
            return value
    return usual


def _parts(row: Mapping[str, Any], hh_as_text: bool) -> tuple[Prompt, str, str | None]:
    present = {
        key for key in ("prompt", "chosen", "rejected", "completion", "messages") if row.get(key) is not None
    }
    if {"chosen", "rejected"} <= present and "completion" not in present:
        return _pair(row, hh_as_text)
    if {"prompt", "completion"} <= present and present.isdisjoint({"chosen", "rejected"}):
        return _prompt("prompt", row["prompt"]), _answer("completion", row["completion"]), None
    if present == {"messages"}:
        messages = _messages("messages", row["messages"])
        prompt, answer = _ended(messages, "messages")
        return prompt, answer, None
    keys = ", ".join(map(str, list(row)[:12])) or "none"
    raise RowError(f"has the fields {keys}; expected {_FORMS}")


def _pair(row: Mapping[str, Any], hh_as_text: bool) -> tuple[Prompt, str, str]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and row.get("prompt") is None:
        return _dialogue(chosen, rejected, hh_as_text)
    if _holds_prompt(chosen) or _holds_prompt(rejected):
        return _conversations(chosen, rejected)
    if row.get("prompt") is None:
        raise RowError(f"prompt: is missing; expected {_FORMS}")
    return _prompt("prompt", row["prompt"]), _answer("chosen", chosen), _answer("rejected", rejected)


def _holds_prompt(answer: Any) -> bool:
    return isinstance(answer, list) and len(answer) > 1


def _conversations(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """Two conversations that differ in their last message only, as UltraFeedback's."""
    prompt, liked = _ended(_messages("chosen", chosen), "chosen")
    other, disliked = _ended(_messages("rejected", rejected), "rejected")
    if prompt != other:
        raise RowError("rejected: its messages before the answer are not those of chosen")
    return prompt, liked, disliked


def _dialogue(chosen: str, rejected: str, as_text: bool) -> tuple[Prompt, str, str]:
    """Two dialogues in HH-rlhf's form that differ in their last turn only."""
    before, liked = _last_turn(chosen, "chosen")
    other, disliked = _last_turn(rejected, "rejected")
    if before != other:
        raise RowError("rejected: its turns before the answer are not those of chosen")
    if as_text:
        return f"{before}\n\nAssistant:", f" {liked}", f" {disliked}"
    _, *parts = _HH_TURN.split(before)
    turns = [
        {"role": _HH_ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return tuple(turns), liked, disliked


def _last_turn(dialogue: str, name: str) -> tuple[str, str]:
    before, found, answer = dialogue.rpartition("\n\nAssistant:")
    if not found or not before.startswith("\n\nHuman:"):
        raise RowError(
            f"{name}: is no dialogue of the form '\\n\\nHuman: … \\n\\nAssistant: …', and there is no prompt"
        )
    if "\n\nHuman:" in answer:
        raise RowError(f"{name}: ends with a turn of Human, not of Assistant")
    if not answer.strip():
        raise RowError(f"{name}: its last turn is empty")
    return before, answer.strip()


def _prompt(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        if not value:
            raise RowError(f"{name}: is empty")
        return value
    messages = _messages(name, value)
    if messages[-1]["role"] == "assistant":
        raise RowError(f"{name}: ends with a message of the assistant, which belongs into the answer")
    return messages


def _answer(name: str, value: Any) -> str:
    if isinstance(value, list):
        messages = _messages(name, value)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise RowError(f"{name}: expected text, or a list of one message of the assistant")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise RowError(f"{name}: holds {shown(value)}, not text")
    if not value.strip():
        raise EmptyAnswer(f"{name}: is empty")
    return value


def _ended(messages: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation before its last answer, and that answer."""
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise RowError(f"{name}: has to end with a message of the assistant that answers another one")
    return messages[:-1], _answer(f"{name}.{len(messages) - 1}.content", messages[-1]["content"])


def _messages(name: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"{name}: holds {shown(value)}; expected text or a list of messages")
    return tuple(_message(f"{name}.{index}", message) for index, message in enumerate(value))


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"{name}: holds {shown(value)}, not a message")
    said = {key: item for key, item in value.items() if item is not None}
    more = sorted(set(said) - {"role", "content"})
    if more:
        raise RowError(f"{name}.{more[0]}: is not learnt; a message has a role and a content")
    if said.get("role") not in _ROLES:
        raise RowError(f"{name}.role: is {shown(said.get('role'))}; expected {', '.join(_ROLES)}")
    if not isinstance(said.get("content"), str):
        raise RowError(f"{name}.content: holds {shown(said.get('content'))}, not text")
    return {"role": said["role"], "content": said["content"]}
