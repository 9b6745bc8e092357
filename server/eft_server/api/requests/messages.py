"""The messages of a chat: text in the roles that chat templates know, tool calls and their results."""

from typing import Any

from eft_server.api.requests.checks import FieldError
from eft_server.api.requests.tools import MAX_TOOLS, check_call, need_parser
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = ["DEVELOPER", "ROLES", "check_content", "check_id", "check_messages", "each"]

MAX_MESSAGES = 1024
ROLES = ("system", "user", "assistant", "tool")

DEVELOPER = "developer"
"""OpenAI's newer name for the system's role, which chat templates do not know."""
MAX_ID_CHARS = 256
_KEYS = {
    "system": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset({"role", "content", "tool_calls", "reasoning"}),
    "tool": frozenset({"role", "content", "tool_call_id"}),
}
_EMPTY: tuple[Any, ...] = (None, [])


def check_messages(value: Any, options: ServerOptions) -> None:
    """Check a chat's messages.

    Keys that are null or empty lists are removed in place: official clients send a completion's message back with its
    unused fields.

    Raises:
        FieldError: There is no message or too many, an unknown role, no text content, a media part, a key (such
            as a name) that no member would see, or calls or reasoning without a parser for them.
    """
    for message, place in each(value, MAX_MESSAGES, "messages"):
        try:
            _check_message(message, options)
        except FieldError as error:
            raise FieldError(str(error), f"{place}{error.place}") from None


def each(value: Any, most: int, what: str) -> list[tuple[Any, str]]:
    """The items of a list, each with its place.

    Raises:
        FieldError: It is not a list, is empty, or has too many items.
    """
    if not isinstance(value, list):
        raise FieldError(f"{shown(value)} is not a list of {what}")
    if not 0 < len(value) <= most:
        raise FieldError(f"{len(value)} {what} are not allowed; allowed: 1 to {most}")
    return [(item, f".{index}") for index, item in enumerate(value)]


def _check_message(message: Any, options: ServerOptions) -> None:
    if not isinstance(message, dict):
        raise FieldError(f"{shown(message)} is not a message")
    if message.get("role") == DEVELOPER:
        message["role"] = "system"
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise FieldError(f"{shown(role)} is not one of {', '.join(ROLES)}", ".role")
    for key in [key for key, value in message.items() if key != "content" and value in _EMPTY]:
        del message[key]
    for key in message:
        if key not in _KEYS[role]:
            raise FieldError(
                f"not supported; the role {role} has {', '.join(sorted(_KEYS[role]))}", f".{key}"
            )
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], options)
    if "reasoning" in message:
        _check_reasoning(message["reasoning"], options)
    if role == "tool":
        _check_result(message, options)
    if "tool_calls" not in message or message.get("content") not in _EMPTY:
        check_content(message.get("content"))


def _check_calls(value: Any, options: ServerOptions) -> None:
    try:
        need_parser(options)
        for call, place in each(value, MAX_TOOLS, "calls"):
            keys = {"id", "type", "function"}
            if isinstance(call, dict) and type(call.get("index")) is int:
                del call["index"]  # Clients that assemble a stream keep it.
            if not isinstance(call, dict) or set(call) != keys or call["type"] != "function":
                raise FieldError("a call has id, type, which is function, and function", place)
            check_id(call["id"], f"{place}.id")
            function = call["function"]
            if not isinstance(function, dict) or set(function) != {"name", "arguments"}:
                raise FieldError("a call's function has name and arguments", f"{place}.function")
            check_call(function["name"], function["arguments"], f"{place}.function")
    except FieldError as error:
        raise FieldError(str(error), f".tool_calls{error.place}") from None


def _check_reasoning(value: Any, options: ServerOptions) -> None:
    if options.reasoning_parser is None:
        raise FieldError(
            "reasoning needs a parser; the operator has to set server.reasoning_parser", ".reasoning"
        )
    if not isinstance(value, str):
        raise FieldError(f"{shown(value)} is not text", ".reasoning")


def _check_result(message: dict[str, Any], options: ServerOptions) -> None:
    try:
        need_parser(options)
    except FieldError as error:
        raise FieldError(str(error), ".role") from None
    check_id(message.get("tool_call_id"), ".tool_call_id")


def check_id(value: Any, place: str) -> None:
    """Check the id of a call.

    Raises:
        FieldError: It is not an id.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        raise FieldError(f"{shown(value)} is not the id of a call, 1 to {MAX_ID_CHARS} characters", place)


def check_content(
    content: Any, kinds: tuple[str, ...] = ("text",), ignored: frozenset[str] = frozenset()
) -> None:
    """Check a message's content: a string, or a list of text parts.

    Args:
        content: The content.
        kinds: What the type of a text part may be.
        ignored: Keys of a part that clients send back, and that mean nothing to a model.

    Raises:
        FieldError: It is neither, or a part is not text.
    """
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise FieldError(f"{shown(content)} is not text", ".content")
    for index, part in enumerate(content):
        place = f".content.{index}"
        if not isinstance(part, dict) or part.get("type") not in kinds:
            kind = shown(part.get("type") if isinstance(part, dict) else part)
            message = f"{kind} is not a text part, and others are not supported: {{'type': {kinds[0]!r}, 'text': …}}"
            raise FieldError(message, place)
        if set(part) - ignored != {"type", "text"} or not isinstance(part["text"], str):
            raise FieldError("a text part has type and text, a string, and nothing else", place)
