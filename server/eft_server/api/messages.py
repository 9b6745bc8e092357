"""The messages of a chat: text only, in the three roles that every chat template knows."""

from typing import Any

from eft_server.api.checks import FieldError
from eft_server.config import ServerOptions
from eft_server.errors import shown

__all__ = ["check_messages"]

MAX_MESSAGES = 1024
ROLES = ("system", "user", "assistant")
_KEYS = frozenset({"role", "content"})
_EMPTY: tuple[Any, ...] = (None, [])


def check_messages(value: Any, _options: ServerOptions) -> None:
    """Check a chat's messages.

    Keys that are null, or empty lists, are dropped in place: official clients send a completion's message
    back with its unused fields.

    Raises:
        FieldError: There is no message or too many, an unknown role, no text content, a media part, or a key
            (tool calls, names) that no member would see.
    """
    if not isinstance(value, list):
        raise FieldError(f"{shown(value)} is not a list of messages")
    if not 0 < len(value) <= MAX_MESSAGES:
        raise FieldError(f"{len(value)} messages cannot be taken; allowed: 1 to {MAX_MESSAGES}")
    for index, message in enumerate(value):
        try:
            _check_message(message)
        except FieldError as error:
            raise FieldError(str(error), f".{index}{error.place}") from None


def _check_message(message: Any) -> None:
    if not isinstance(message, dict):
        raise FieldError(f"{shown(message)} is not a message")
    for key in [key for key, value in message.items() if key not in _KEYS and value in _EMPTY]:
        del message[key]
    for key in message:
        if key not in _KEYS:
            raise FieldError("not supported; a message has role and content", f".{key}")
    if message.get("role") not in ROLES:
        raise FieldError(f"{shown(message.get('role'))} is not one of {', '.join(ROLES)}", ".role")
    _check_content(message.get("content"))


def _check_content(content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise FieldError(f"{shown(content)} is not text", ".content")
    for index, part in enumerate(content):
        place = f".content.{index}"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise FieldError("only text parts are supported: {'type': 'text', 'text': …}", place)
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise FieldError("a text part has type and text, a string, and nothing else", place)
