"""JSON without its traps: finite numbers, valid Unicode, no duplicate keys, bounded depth and digits."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from eft_server.api.edge.api_error import ApiError

__all__ = ["MalformedError", "parse_object"]

MAX_DEPTH = 64
_INTEGERS = range(-(2**63), 2**64)
_MAX_DIGITS = 20

# Python hooks for every number and every string would make long prompts slow, so they run only where one of these
# patterns matches: many digits or an exponent, or an escaped surrogate.
_UNUSUAL_NUMBER = re.compile(rb"[0-9]{19}|[0-9][eE]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class MalformedError(ApiError):
    """Text that is not acceptable JSON.

    Attributes:
        problem: The problem, for messages about texts other than request bodies.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"The request body cannot be used: {problem}.", code="invalid_json")
        self.problem = problem


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request body, which has to be one JSON object.

    Raises:
        MalformedError: The body is empty, not UTF-8, not JSON, not an object, nested too deeply, or holds a number
            that is not finite, an integer of more than 64 bits, a duplicate key or a lone surrogate.
    """
    value = _parse(body)
    if not isinstance(value, dict):
        raise MalformedError("it has to be a JSON object")
    _check_depth(value)
    if _SURROGATE.search(body):
        _check_text(value)
    return value


def _parse(body: bytes) -> Any:
    hooks: dict[str, Any] = {"parse_constant": _refuse_constant, "object_pairs_hook": _unique}
    if _UNUSUAL_NUMBER.search(body):
        hooks |= {"parse_float": _finite, "parse_int": _bounded}
    try:
        return json.loads(body.decode("utf-8"), **hooks)
    except UnicodeDecodeError as exc:
        raise MalformedError(f"it is not valid UTF-8 (byte {exc.start})") from None
    except json.JSONDecodeError as exc:
        raise MalformedError(f"{exc.msg} at line {exc.lineno}, column {exc.colno}") from None
    except RecursionError:
        raise _too_deep() from None


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [inner for node in level for inner in _containers(node)]
        if not level:
            return
    raise _too_deep()


def _check_text(document: dict[str, Any]) -> None:
    pending: list[Any] = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            # Only a lone surrogate survives decoding, and later stages cannot encode it.
            if any("\ud800" <= char <= "\udfff" for char in node):
                raise MalformedError("a string holds a lone surrogate, which is not valid Unicode")
        elif isinstance(node, dict | list):
            pending.extend(_values(node))
            pending.extend(node if isinstance(node, dict) else ())


def _containers(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    values = _values(node)
    # Long lists of numbers and strings, such as prompts, are skipped at once.
    if {dict, list}.isdisjoint(map(type, values)):
        return ()
    return (value for value in values if isinstance(value, dict | list))


def _values(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _refuse_constant(literal: str) -> NoReturn:
    raise MalformedError(f"{literal} is not a JSON number")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise MalformedError(f"the number {_shown(literal)} is too large")
    return value


def _bounded(literal: str) -> int:
    if len(literal) > _MAX_DIGITS or int(literal) not in _INTEGERS:
        raise MalformedError(f"the integer {_shown(literal)} does not fit into 64 bits")
    return int(literal)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise MalformedError(f"the key {_shown(repeated)!r} is given twice")
    return members


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _too_deep() -> MalformedError:
    return MalformedError(f"it nests deeper than {MAX_DEPTH} levels")
