"""JSON without its traps: finite numbers, valid Unicode, no duplicate keys, bounded depth and digits."""

import json
import math
from typing import Any, NoReturn

from eft_server.api.errors import ApiError

__all__ = ["parse_object"]

MAX_DEPTH = 64
_INTEGERS = range(-(2**63), 2**64)
_MAX_DIGITS = 20


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request body that has to be one JSON object.

    Raises:
        ApiError: The body is empty, not UTF-8, not JSON, not an object, nested too deeply, or holds a number
            that is not finite, an integer of more than 64 bits, a duplicate key or a lone surrogate.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError as exc:
        raise _malformed(f"it is not valid UTF-8 (byte {exc.start})") from None
    except json.JSONDecodeError as exc:
        raise _malformed(f"{exc.msg} at line {exc.lineno}, column {exc.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise _malformed("it has to be a JSON object")
    _check_depth_and_text(value)
    return value


def _check_depth_and_text(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for node in level:
            if isinstance(node, str):
                _check_text(node)
            elif isinstance(node, dict):
                children.extend(node)
                children.extend(node.values())
            elif isinstance(node, list):
                children.extend(node)
        if not children:
            return
        level = children
    raise _too_deep()


def _check_text(text: str) -> None:
    # Only a surrogate without its partner survives JSON decoding, and nothing behind us can encode it.
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise _malformed("a string holds a lone surrogate, which is not valid Unicode")


def _refuse_constant(literal: str) -> NoReturn:
    raise _malformed(f"{literal} is not a JSON number")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise _malformed(f"the number {_shown(literal)} is too large")
    return value


def _bounded(literal: str) -> int:
    if len(literal) > _MAX_DIGITS or int(literal) not in _INTEGERS:
        raise _malformed(f"the integer {_shown(literal)} does not fit into 64 bits")
    return int(literal)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _malformed(f"the key {_shown(repeated)!r} is given twice")
    return members


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _malformed(problem: str) -> ApiError:
    return ApiError(f"The request body cannot be used: {problem}.", code="invalid_json")


def _too_deep() -> ApiError:
    return _malformed(f"it nests deeper than {MAX_DEPTH} levels")
