"""Removes the nulls of vLLM-specific fields from responses; those of OpenAI's fields stay."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from eft_server.api.serving.events import event_of, payload_of

__all__ = ["event_without_foreign_nulls", "without_foreign_nulls"]

_CLIENTS = frozenset({"eft", "metadata", "text", "tools", "top_logprobs"})
"""Objects whose keys are not vLLM's: the request's data, this server's fields, and tokens."""

# By a response's "object", or the beginning of an event's type.
_SHAPES: dict[str, tuple[Any, ...]] = {
    "chat.completion": (ChatCompletion,),
    "chat.completion.chunk": (ChatCompletionChunk,),
    "text_completion": (Completion,),
    "response": (Response, ResponseStreamEvent),
}

_NULL = re.compile(r',"(\w+)":null(?=[,}])')
"""A null after another field. Inside a string it would contain backslashes."""

_DEEPER = re.compile(rf'\{{"\w+":null|"(?:{"|".join(_CLIENTS)})":[\[{{]')
"""Cases that this expression misses or must not touch."""

_CHUNKS = {f'"object":"{kind}"': kind for kind in ("chat.completion.chunk", "text_completion")}


def without_foreign_nulls(answer: dict[str, Any]) -> dict[str, Any]:
    """A response, or an event of a stream, without null fields that are not OpenAI's; other objects are unchanged."""
    kind = answer.get("object") or str(answer.get("type")).partition(".")[0]
    if kind not in _SHAPES:
        return answer
    pruned: dict[str, Any] = _pruned(answer, _known(kind))
    return pruned


def event_without_foreign_nulls(event: str) -> str:
    """The same for an event's text. Every token's event has such nulls, so they are cut out without parsing."""
    if ":null" not in event or not event.startswith("data: {"):
        return event
    kind = next((kind for told, kind in _CHUNKS.items() if told in event), None)
    if kind is None or _DEEPER.search(event):
        return event_of(without_foreign_nulls(payload_of(event)))
    known = _known(kind)
    return _NULL.sub(lambda found: found[0] if found[1] in known else "", event)


def _pruned(node: Any, kept: frozenset[str]) -> Any:
    if isinstance(node, list):
        return [_pruned(item, kept) for item in node] if any(map(_is_nested, node)) else node
    if not isinstance(node, dict):
        return node
    return {
        key: value if key in _CLIENTS else _pruned(value, kept)
        for key, value in node.items()
        if value is not None or key in kept
    }


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


@cache
def _known(kind: str) -> frozenset[str]:
    """All fields of OpenAI's responses of a kind, at any depth."""
    seen: set[Any] = set()
    return frozenset(name for shape in _SHAPES[kind] for name in _names(shape, seen))


def _names(shape: Any, seen: set[Any]) -> Iterator[str]:
    for inner in get_args(shape):
        yield from _names(inner, seen)
    if isinstance(shape, type) and issubclass(shape, BaseModel) and shape not in seen:
        seen.add(shape)
        for name, field in shape.model_fields.items():
            yield field.alias or name
            yield from _names(field.annotation, seen)
