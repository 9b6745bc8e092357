"""Tools: functions that a model may or must call. vLLM's parsers find the calls in its answer."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from eft_server.api.requests.checks import Check, FieldError
from eft_server.api.requests.structured import check_schema
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = ["chat_tools", "check_call", "check_function_name", "flat_tools", "need_parser", "tool_choice"]

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 16_384

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})
_CHOICES = ("none", "auto", "required")


def need_parser(options: ServerOptions) -> None:
    """Refuse a field that needs a tool parser, if there is none.

    Raises:
        FieldError: The family file names none.
    """
    if options.tool_parser is None:
        raise FieldError(
            "tool calls need a parser for the members' format; the operator has to set server.tool_parser"
        )


def chat_tools(value: Any, options: ServerOptions) -> None:
    """Check the tools of a chat: ``{"type": "function", "function": {"name": …, "parameters": …}}``."""
    _check_tools(value, options, nested=True)


def flat_tools(value: Any, options: ServerOptions) -> None:
    """Check the tools of a response: ``{"type": "function", "name": …, "parameters": …}``."""
    _check_tools(value, options, nested=False)


def tool_choice(*, nested: bool) -> Check:
    """none, auto, required, or a function by its name; `nested` puts the name in an inner object, as in chats."""

    def check(value: Any, options: ServerOptions) -> None:
        if value != "none":
            need_parser(options)
        if isinstance(value, str) and value in _CHOICES:
            return
        outer = {"type", "function"} if nested else {"type", "name"}
        if not isinstance(value, dict) or set(value) != outer or value["type"] != "function":
            raise FieldError(f"{shown(value)} is not one of {', '.join(_CHOICES)}, or a function by its name")
        named = value["function"] if nested else value
        if not isinstance(named, dict) or set(named) - {"type", "name"}:
            raise FieldError("a function is chosen only by its name", ".function")
        check_function_name(named.get("name"), ".function.name" if nested else ".name")

    return check


def check_function_name(value: Any, place: str) -> None:
    """Check a function's name.

    Raises:
        FieldError: It is not a valid name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise FieldError(f"{shown(value)} is not 1 to 64 letters, digits, _ or -", place)


def check_call(name: Any, arguments: Any, place: str = "") -> None:
    """Check an earlier call: a function's name, and its arguments as text.

    The arguments need not be valid JSON, since clients send back what a model wrote: vLLM treats text that is not a
    JSON object as an empty one.

    Raises:
        FieldError: The name is not valid, or the arguments are not text or are nested too deeply.
    """
    check_function_name(name, f"{place}.name")
    if not isinstance(arguments, str):
        raise FieldError(f"{shown(arguments)} is not text", f"{place}.arguments")
    try:
        with suppress(ValueError):
            json.loads(arguments)
    except RecursionError:
        raise FieldError(f"{shown(arguments)} is nested too deeply", f"{place}.arguments") from None


def _check_tools(value: Any, options: ServerOptions, *, nested: bool) -> None:
    need_parser(options)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOOLS:
        given = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        raise FieldError(f"{given} is not a list of 1 to {MAX_TOOLS} tools")
    names: set[str] = set()
    for index, tool in enumerate(value):
        try:
            function = _function(tool, nested)
        except FieldError as error:
            raise FieldError(str(error), f".{index}{error.place}") from None
        if function["name"] in names:
            raise FieldError(f"{shown(function['name'])} is also the name of another tool", f".{index}")
        names.add(function["name"])


def _function(tool: Any, nested: bool) -> Mapping[str, Any]:
    place = ".function" if nested else ""
    kind = tool.get("type") if isinstance(tool, dict) else tool
    if not isinstance(tool, dict) or kind != "function":
        raise FieldError(f"{shown(kind)} is not supported; a tool is a function", ".type")
    function = tool.get("function") if nested else {key: item for key, item in tool.items() if key != "type"}
    if not isinstance(function, dict) or (nested and set(tool) != {"type", "function"}):
        raise FieldError("a tool has type and function, an object, and nothing else")
    for key in function:
        if key not in _FUNCTION_KEYS:
            raise FieldError(f"not supported; known: {', '.join(sorted(_FUNCTION_KEYS))}", f"{place}.{key}")
    check_function_name(function.get("name"), f"{place}.name")
    _check_description(function.get("description"), f"{place}.description")
    _check_parameters(function.get("parameters"), f"{place}.parameters")
    if not isinstance(function.get("strict"), bool | None):
        raise FieldError(f"{shown(function['strict'])} is not true or false", f"{place}.strict")
    return function


def _check_description(value: Any, place: str) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > MAX_DESCRIPTION_CHARS):
        raise FieldError(f"{shown(value)} is not a string of up to {MAX_DESCRIPTION_CHARS} characters", place)


def _check_parameters(value: Any, place: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type", "object") != "object":
        raise FieldError(f"{shown(value)} is not a JSON schema of an object", place)
    try:
        # All tools' schemas are merged into one, in which only definitions under $defs keep their path.
        check_schema(value, references="#/$defs/")
    except FieldError as error:
        raise FieldError(str(error), place) from None
