"""The input of a response: text, or a list of messages, calls, their results, and reasoning."""

from collections.abc import Callable, Mapping
from typing import Any

from eft_server.api.requests.checks import FieldError
from eft_server.api.requests.messages import DEVELOPER, check_content, check_id, each
from eft_server.api.requests.tools import check_call, need_parser
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = ["ROLES", "check_input"]

MAX_ITEMS = 1024
ROLES = ("system", "user", "assistant")
_PARTS = ("input_text", "output_text", "text")

# Keys of an output's items or parts that clients send back, and that mean nothing to a model.
_OUTPUT_KEYS = frozenset({"id", "status"})
_PART_KEYS = frozenset({"annotations", "logprobs"})


def check_input(value: Any, options: ServerOptions) -> None:
    """Check a response's input, and normalise its items so that nothing is lost.

    A message's parts are joined in place: vLLM would read only the first part of an assistant's message.

    Raises:
        FieldError: There is no item or too many, or an item has a type or a key that no member would see.
    """
    if isinstance(value, str):
        if not value:
            raise FieldError("the input is empty")
        return
    for item, place in each(value, MAX_ITEMS, "items"):
        try:
            _check_item(item, options)
        except FieldError as error:
            raise FieldError(str(error), f"{place}{error.place}") from None


def _check_item(item: Any, options: ServerOptions) -> None:
    if not isinstance(item, dict):
        raise FieldError(f"{shown(item)} is not an item")
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise FieldError(f"{shown(kind)} is not one of {', '.join(_ITEMS)}", ".type")
    keys, check = _ITEMS[kind]
    for key in [key for key, value in item.items() if value is None or key in _OUTPUT_KEYS]:
        del item[key]
    for key in item:
        if key not in keys:
            raise FieldError(
                f"not supported; an item of type {kind} has {', '.join(sorted(keys))}", f".{key}"
            )
    check(item, options)


def _check_message(item: dict[str, Any], _options: ServerOptions) -> None:
    if item.get("role") == DEVELOPER:
        item["role"] = "system"
    if item.get("role") not in ROLES:
        raise FieldError(f"{shown(item.get('role'))} is not one of {', '.join(ROLES)}", ".role")
    check_content(item.get("content"), _PARTS, _PART_KEYS)
    item["type"] = "message"
    if isinstance(item["content"], list):
        item["content"] = "\n".join(part["text"] for part in item["content"])


def _check_call(item: dict[str, Any], options: ServerOptions) -> None:
    need_parser(options)
    check_id(item.get("call_id"), ".call_id")
    check_call(item.get("name"), item.get("arguments"))


def _check_result(item: dict[str, Any], options: ServerOptions) -> None:
    need_parser(options)
    check_id(item.get("call_id"), ".call_id")
    if not isinstance(item.get("output"), str):
        raise FieldError(f"{shown(item.get('output'))} is not text", ".output")


def _check_reasoning(item: dict[str, Any], options: ServerOptions) -> None:
    if options.reasoning_parser is None:
        raise FieldError("reasoning needs a parser; the operator has to set server.reasoning_parser")
    if item.get("summary"):
        raise FieldError("no member would see it; reasoning is in content", ".summary")
    item["summary"] = []
    check_content(item.get("content"), ("reasoning_text",))
    if not isinstance(item["content"], list):
        raise FieldError("must be a list of reasoning_text parts", ".content")
    text = "\n".join(part["text"] for part in item["content"])
    item["content"] = [{"type": "reasoning_text", "text": text}]


_ITEMS: Mapping[str, tuple[frozenset[str], Callable[[dict[str, Any], ServerOptions], None]]] = {
    "message": (frozenset({"type", "role", "content"}), _check_message),
    "function_call": (frozenset({"type", "call_id", "name", "arguments"}), _check_call),
    "function_call_output": (frozenset({"type", "call_id", "output"}), _check_result),
    "reasoning": (frozenset({"type", "summary", "content"}), _check_reasoning),
}
