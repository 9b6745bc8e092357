"""What a request says of its behaviour, in either of its two forms, checked for its shape alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eft_server.errors import BehaviourError, shown
from eft_server.family.file import Filter

__all__ = ["XARGS_PREFIX", "Asked"]

XARGS_PREFIX = "eft."
_KEYS = ("weights", "scale", "amplify", "filter", "coefficients")
_KINDS = ("expert", "base")
NO_FILTER = Filter(kind="expert", top_p=1.0)


@dataclass(frozen=True)
class Asked:
    """The fields of a request's `eft` or `vllm_xargs`; None for what it leaves to the model.

    Attributes:
        field: the request field that they came in, or the place in a family file.
        weights: a number for each expert that it names.
        scale: the factor on all weights.
        amplify: the factor on the up-scaling delta.
        filter: where the small models are trusted.
        coefficients: a number for each member that it names, in place of all others but a base filter.
    """

    field: str
    weights: dict[str, float] | None = None
    scale: float | None = None
    amplify: float | None = None
    filter: Filter | None = None
    coefficients: dict[str, float] | None = None

    @classmethod
    def from_eft(cls, eft: Any) -> "Asked":
        """Read the field `eft`. A filter of null means none, also where the model has one.

        Raises:
            BehaviourError: It is no object, or has an unknown key or a value of a wrong kind.
        """
        if not isinstance(eft, Mapping):
            raise BehaviourError(f"must be an object with {', '.join(_KEYS)}, not {shown(eft)}", "eft")
        for key in eft:
            if key not in _KEYS:
                raise BehaviourError(f"unknown key {shown(key)}; known: {', '.join(_KEYS)}", path("eft", key))
        return cls(
            "eft",
            weights=_numbers(eft, "weights", "expert"),
            scale=_number(eft["scale"], "eft.scale") if "scale" in eft else None,
            amplify=_number(eft["amplify"], "eft.amplify") if "amplify" in eft else None,
            filter=_filter(eft["filter"]) if "filter" in eft else None,
            coefficients=_numbers(eft, "coefficients", "member"),
        )

    @classmethod
    def from_xargs(cls, xargs: Any) -> "Asked":
        """Read the flat form of `vllm_xargs`: eft.<expert>, eft.scale, eft.amplify, eft.filter and eft.top_p.

        Raises:
            BehaviourError: As for `from_eft`.
        """
        if not isinstance(xargs, Mapping):
            raise BehaviourError(f"must be an object, not {shown(xargs)}", "vllm_xargs")
        given: dict[str, Any] = {}
        for key, value in xargs.items():
            if not isinstance(key, str) or not key.startswith(XARGS_PREFIX):
                known = "eft.<expert>, eft.scale, eft.amplify, eft.filter and eft.top_p"
                raise BehaviourError(f"unknown key {shown(key)}; known: {known}", path("vllm_xargs", key))
            given[key.removeprefix(XARGS_PREFIX)] = value
        kind, top_p = given.pop("filter", None), given.pop("top_p", None)
        values = {key: _number(value, path("vllm_xargs", "eft", key)) for key, value in given.items()}
        scale, amplify = values.pop("scale", None), values.pop("amplify", None)
        keep = None
        if kind is not None or top_p is not None:
            keep = _filter_of(kind, top_p, "vllm_xargs.eft.filter", "vllm_xargs.eft.top_p")
        return cls("vllm_xargs", values or None, scale, amplify, keep)

    def param(self, *key: str) -> str:
        """The request field of a key such as ("weights", "helpful")."""
        if self.field == "vllm_xargs":
            return path("vllm_xargs", "eft", *(part for part in key if part != "weights"))
        return path(self.field, *key)


def _numbers(given: Mapping[str, Any], key: str, noun: str) -> dict[str, float] | None:
    if key not in given:
        return None
    if not isinstance(given[key], Mapping):
        message = f"must be an object of numbers by {noun}, not {shown(given[key])}"
        raise BehaviourError(message, path("eft", key))
    return {name: _number(value, path("eft", key, name)) for name, value in given[key].items()}


def _filter(value: Any) -> Filter:
    if value is None:
        return NO_FILTER
    if not isinstance(value, Mapping):
        raise BehaviourError(f"must be an object with kind and top_p, not {shown(value)}", "eft.filter")
    for key in value:
        if key not in ("kind", "top_p"):
            param = path("eft", "filter", key)
            raise BehaviourError(f"unknown key {shown(key)}; known: kind, top_p", param)
    return _filter_of(value.get("kind"), value.get("top_p"), "eft.filter.kind", "eft.filter.top_p")


def _filter_of(kind: Any, top_p: Any, kind_param: str, top_p_param: str) -> Filter:
    if kind not in _KINDS:
        raise BehaviourError(f"{shown(kind)} is no kind of filter; known: {', '.join(_KINDS)}", kind_param)
    if not 0 <= _number(top_p, top_p_param) <= 1:
        raise BehaviourError(f"{shown(top_p)} is out of bounds; allowed: 0 to 1", top_p_param)
    return Filter(kind=kind, top_p=float(top_p))


def _number(value: Any, param: str) -> float:
    """A finite number, left as it is: a huge integer still compares with bounds, but has no float.

    Raises:
        BehaviourError: The value is not a number (a boolean is not one), or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BehaviourError(f"must be a number, not {shown(value)}", param)
    if isinstance(value, float) and not math.isfinite(value):
        raise BehaviourError(f"must be a finite number, not {value}", param)
    return value


def path(*key: Any) -> str:
    """A dotted request field; a part that would not print well is abbreviated."""
    return ".".join(part if isinstance(part, str) and _is_plain(part) else shown(part) for part in key)


def _is_plain(text: str) -> bool:
    return len(text) <= 64 and text.isprintable()
