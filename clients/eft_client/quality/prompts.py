"""The prompts of a study: the questions, their right answers, and which measures count them."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from eft_client.jsonl import json_value, text_lines
from eft_client.quality.errors import StudyError

__all__ = ["MAX_LINE_BYTES", "MAX_PROMPTS", "Prompt", "as_json", "read_prompts"]

MAX_PROMPTS = 100_000
MAX_LINE_BYTES = 1 << 20
MAX_TAGS = 32
MAX_REFERENCES = 1000

#: What a bare tag means where it is one of the two that measures look at.
_KNOWN_TAGS = {
    "in-distribution": ("distribution", "in"),
    "out-of-distribution": ("distribution", "out"),
    "harmful": ("harm", "harmful"),
    "benign": ("harm", "benign"),
}
_ALLOWED = {"distribution": ("in", "out"), "harm": ("harmful", "benign")}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Something to ask, and what is known of its answers.

    Attributes:
        id: unique in a study.
        messages: the conversation, OpenAI's form; its last message is the question.
        references: right answers.
        wrong: answers that make one wrong that also states a right one.
        expects: what a helpful answer mentions: of every entry at least one alternative.
        tags: name to value; `distribution` is in or out, `harm` is harmful or benign.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    references: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    expects: tuple[tuple[str, ...], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def harmful(self) -> bool:
        """Whether the right answer is to decline; every other prompt is benign."""
        return self.tags.get("harm") == "harmful"

    @property
    def text(self) -> str:
        """The question, as people read it: the last message's text."""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(value: Any) -> Any:
    """Tags as an object: known bare tags by what they mean, others as name=yes."""
    if not isinstance(value, list):
        return value
    named: dict[str, str] = {}
    for tag in value:
        if not isinstance(tag, str):
            raise ValueError(f"tag {tag!r} is not text")
        name, content = _KNOWN_TAGS.get(tag, (tag, "yes"))
        if named.setdefault(name, content) != content:
            raise ValueError(f"tags {value!r} contradict each other about {name}")
    return named


def _searchable(text: str) -> str:
    """The text, where an answer can be searched for it: punctuation and ASCII's symbols are no words."""
    if not any(c.isalnum() or (not c.isascii() and unicodedata.category(c)[0] == "S") for c in text):
        raise ValueError("no word in it that an answer could be searched for")
    return text


_Text = Annotated[str, Field(min_length=1, max_length=MAX_LINE_BYTES)]
_Word = Annotated[_Text, AfterValidator(_searchable)]
_Words = Annotated[tuple[_Word, ...], BeforeValidator(_listed), Field(max_length=MAX_REFERENCES)]
#: Of none, nothing could be mentioned.
_Alternatives = Annotated[_Words, Field(min_length=1)]


class _Line(BaseModel):
    """One line of a file of prompts."""

    model_config = ConfigDict(extra="forbid", strict=False)

    prompt: _Text | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    reference: _Word | None = None
    references: _Words = ()
    wrong: _Words = ()
    expects: Annotated[
        tuple[_Alternatives, ...], BeforeValidator(_listed), Field(max_length=MAX_REFERENCES)
    ] = ()
    tags: Annotated[dict[str, str], BeforeValidator(_named), Field(max_length=MAX_TAGS)] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        for name, allowed in _ALLOWED.items():
            if (value := self.tags.get(name)) is not None and value not in allowed:
                raise ValueError(f"tag {name} is {value!r}; expected {' or '.join(allowed)}")
        for message in self.messages or ():
            if not isinstance(message.get("role"), str):
                raise ValueError(f"message {message!r} has no role")
        return self

    def prompt_of(self) -> Prompt:
        """What the line says; without an id, one that follows from the conversation."""
        messages = self.messages or [{"role": "user", "content": self.prompt}]
        digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
        first = (self.reference,) if self.reference is not None else ()
        return Prompt(
            id=self.id or digest[:16],
            messages=tuple(messages),
            references=first + self.references,
            wrong=self.wrong,
            expects=self.expects,
            tags=self.tags,
        )


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL file of prompts; empty lines are skipped, and so are byte-order marks.

    A line is `{"prompt": text}` or `{"messages": […]}` with any of `id`, `reference` or `references`, `wrong`,
    `expects` and `tags`.

    Raises:
        StudyError: The file cannot be read, is empty or too large, or a line says something else; it names the line.
    """
    prompts: dict[str, Prompt] = {}
    for number, line in text_lines(path, MAX_LINE_BYTES, StudyError):
        prompt = _parsed(line, f"{path}, line {number}")
        if prompt.id in prompts:
            raise StudyError(f"{path}, line {number}: the prompt with id {prompt.id!r} came before")
        prompts[prompt.id] = prompt
        if len(prompts) > MAX_PROMPTS:
            raise StudyError(f"{path}: more than {MAX_PROMPTS:,} prompts")
    if not prompts:
        raise StudyError(f"{path}: no prompt in it")
    return list(prompts.values())


def _parsed(line: str, place: str) -> Prompt:
    try:
        return _Line.model_validate(json_value(line)).prompt_of()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        value = "" if where == "" else f", not {str(first['input'])[:100]!r}"
        raise StudyError(f"{place}: {where + ': ' if where else ''}{reason}{value}") from None
    except ValueError as error:
        raise StudyError(f"{place}: {error}") from None


def as_json(prompts: Sequence[Prompt]) -> Iterator[str]:
    """The prompts as lines that `read_prompts` reads."""
    for prompt in prompts:
        line: dict[str, Any] = {"id": prompt.id}
        if len(prompt.messages) == 1 and prompt.messages[0] == {"role": "user", "content": prompt.text}:
            line["prompt"] = prompt.text
        else:
            line["messages"] = list(prompt.messages)
        for name in ("references", "wrong", "expects"):
            if getattr(prompt, name):
                line[name] = getattr(prompt, name)
        if prompt.tags:
            line["tags"] = dict(prompt.tags)
        yield json.dumps(line, ensure_ascii=False)
