"""A behaviour in the model's name, `demo:helpful=0.7,harmless=0.3`: how it is written and read."""

import math
import re
from typing import Any

from eft_server.errors import BehaviourError, shown
from eft_server.family.file import Filter, Setting

__all__ = ["MAX_CHARS", "PLACE", "behaviour_in", "canonical", "split"]

MAX_CHARS = 4096
"""Of a model's name: more than the longest one has that `canonical` writes, with a weight for each of 32 experts."""

PLACE = "model"
"""The request field of a name."""

_FORM = "expert=number, scale=number, amplify=number or filter=expert:0.9, with commas between them"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OFF = "off"


def split(name: str) -> tuple[str, str | None]:
    """The model that is served, and the behaviour behind the colon; None where there is no colon."""
    served, colon, behaviour = name.partition(":")
    return served, behaviour if colon else None


def behaviour_in(text: str) -> dict[str, Any]:
    """The object `eft` that the text after the colon says; a filter that is off is None.

    Raises:
        BehaviourError: It is of another form, names something twice, or has a number that is none.
    """
    eft: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise BehaviourError(f"{shown(item)} is not of the form {_FORM}", PLACE)
        if name in eft or name in weights:
            raise BehaviourError(f"{shown(name)} is named twice", PLACE)
        if name == "filter":
            eft[name] = _filter(value)
        elif (number := _number(value)) is None:
            raise BehaviourError(f"{shown(name)} must be a number such as 0.5, not {shown(value)}", PLACE)
        else:
            (eft if name in ("scale", "amplify") else weights)[name] = number
    return eft | ({"weights": weights} if weights else {})


def canonical(served: str, own: Setting, asked: Setting) -> str:
    """The one name of a behaviour: what differs from the served model's own, in the family's order.

    Args:
        served: the family's name, or an alias.
        own: its setting, with a weight for each expert.
        asked: the behaviour, complete as well.
    """
    items = dict[str, str]()
    if asked.weights != own.weights:
        # Weights replace the model's as a whole, so one at least has to be named.
        counting = [name for name, weight in asked.weights.items() if weight] or list(asked.weights)[:1]
        items |= {name: _written(asked.weights[name]) for name in counting}
    items |= {"scale": _written(asked.scale)} if asked.scale != own.scale else {}
    items |= {"amplify": _written(asked.amplify)} if asked.amplify != own.amplify else {}
    keep = _effective(asked.filter)
    if keep != _effective(own.filter):
        items["filter"] = f"{keep.kind}:{_written(keep.top_p)}" if keep else _OFF
    return f"{served}:{','.join('='.join(item) for item in items.items())}" if items else served


def _effective(keep: Filter | None) -> Filter | None:
    return keep if keep is not None and keep.top_p < 1 else None


def _filter(text: str) -> dict[str, Any] | None:
    if text == _OFF:
        return None
    kind, _, top_p = text.partition(":")
    if kind not in ("expert", "base") or _number(top_p) is None:
        message = (
            f"{shown(text)} is not a filter; expected expert:TOP_P or base:TOP_P, such as expert:0.9, or off"
        )
        raise BehaviourError(message, f"{PLACE}.filter")
    return {"kind": kind, "top_p": _number(top_p)}


def _number(text: str) -> float | None:
    """A finite number in JSON's form, whose zero has no sign here; None for anything else."""
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number + 0.0 if math.isfinite(number) else None


def _written(value: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(value).removesuffix(".0")
