"""JSON lines: what a line says, without JSON's traps."""

import json
import math
import re
from typing import Any, NoReturn

__all__ = ["json_value"]

# A hook for every number would make long files slow, so it runs only where there may be something to find.
_HUGE = re.compile(r"[0-9][eE]|[0-9]{19}")
_HALF = re.compile(r"[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str, *, finite: bool = True) -> Any:
    """What JSON text says.

    Args:
        text: The JSON.
        finite: Whether numbers have to be; whoever checks the value against a form can name what is not.

    Raises:
        ValueError: It is not JSON, names a key twice in an object (of which plain JSON takes the last), or holds a
            number that is not finite or text that is not Unicode; the message says so.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique}
    if finite:
        hooks["parse_constant"] = _refuse
        hooks["parse_float"] = _finite if _HUGE.search(text) else None
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("no JSON: it nests too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    if _ESCAPED_HALF.search(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half of a character that is written as two escapes, which is no Unicode")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is named twice")
    return members


def _finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse(literal)


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]} is not a finite number")
