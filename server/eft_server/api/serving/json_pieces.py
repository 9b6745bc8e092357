"""JSON in pieces, for answers of megabytes: encoded in another thread, they do not block the event loop.

An encoder written in C holds the interpreter lock until it has encoded its whole input.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["PIECE", "in_pieces", "written"]

PIECE = 4096
"""Number of values of a list that are encoded at once."""


def written(value: Any) -> bytes:
    """A model or plain values as JSON, in bytes."""
    return b"".join(piece.encode() for piece in in_pieces(value))


def in_pieces(value: Any) -> Iterator[str]:
    """The same as text, piece by piece; models inside lists and mappings are also split."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        for index, (key, item) in enumerate(value.items()):
            yield f"{',' if index else '{'}{_encoded(str(key))}:"
            yield from in_pieces(item)
        yield "}" if value else "{}"
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel | Mapping | list):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from in_pieces(item)
        yield "]"
    elif isinstance(value, list):
        for start in range(0, len(value), PIECE):
            yield f"{',' if start else '['}{_encoded(value[start : start + PIECE])[1:-1]}"
        yield "]" if value else "[]"
    else:
        yield _encoded(value)


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
