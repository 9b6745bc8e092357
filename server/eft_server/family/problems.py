"""What is wrong with a family file, in words: each problem with its place and dotted key."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from typing_extensions import override

from eft_server.errors import shown
from eft_server.family.document import Document

__all__ = ["KeyedError", "describe"]

MAX_SHOWN = 10


class KeyedError(ValueError):
    """A problem that a validator found at a key other than the one under validation."""

    def __init__(self, key: tuple[str, ...], message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    @override
    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: {self.message}"


def describe(error: ValidationError, document: Document, schema: type[BaseModel]) -> str:
    """One line for each problem: ``file:line: dotted.key: what is wrong``."""
    found = error.errors(include_url=False)
    lines = [_describe_one(problem, document, schema) for problem in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"and {len(found) - MAX_SHOWN} more")
    return "\n".join(lines)


def _describe_one(problem: Any, document: Document, schema: type[BaseModel]) -> str:
    key, message = problem["loc"], problem["msg"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, KeyedError):
        key, message = cause.key, cause.message
    elif problem["type"] == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(_known_keys(key[:-1], schema))}"
    elif problem["type"] == "missing":
        message = "this key is required"
    elif problem["type"] == "value_error":
        message = str(cause)
    else:
        message = f"{message}, not {shown(problem['input'])}"
    # pydantic marks a problem with a mapping's key, rather than its value, by one more part.
    key = tuple(part for part in key if part != "[key]")
    return f"{document.place(key)}: {'.'.join(map(str, key))}: {message}"


def _known_keys(key: Sequence[str | int], schema: Any) -> list[str]:
    """The keys of the section that a key leads to, through sections, mappings and optional sections."""
    for part in key:
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            schema = schema.model_fields[part].annotation
            sections = [a for a in get_args(schema) if isinstance(a, type) and issubclass(a, BaseModel)]
            if get_origin(schema) is not dict and sections:
                schema = sections[0]
    return list(schema.model_fields)
