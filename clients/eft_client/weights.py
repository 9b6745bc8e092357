"""Behaviours as they are typed, such as `helpful=0.7,harmless=0.3`: read in one way wherever they may be."""

import re
from typing import Any

from eft_client.errors import WrongArgument
from eft_client.text import finite_number

__all__ = [
    "FACTORS",
    "SettingError",
    "model_and_behaviour",
    "number_in",
    "parse_behaviour",
    "parse_filter",
    "parse_weights",
    "words_by_name",
    "words_in",
]

FACTORS = ("scale", "amplify")
_FORM = "expert=number, like helpful=0.7,harmless=0.3"
_NAME_WITH_BEHAVIOUR = re.compile(r"([^\s=,@:]+):((?:filter=|[^\s=,@:]+=[-+.\d]).*)", re.DOTALL)


class SettingError(WrongArgument):
    """A behaviour that was typed or written cannot be read; the message names the value and what was expected."""


def words_in(text: str) -> list[str]:
    """Words such as `helpful=0.7`: spaces, commas or both stand between them, and spaces may stand around a `=`."""
    return re.sub(r"\s*=\s*", "=", text).replace(",", " ").split()


def words_by_name(text: str, form: str = _FORM) -> dict[str, str]:
    """The values of words such as `helpful=0.7` (`words_in`) by their names.

    Args:
        text: The words.
        form: What was expected, for messages.

    Raises:
        SettingError: A word has another form, or a name comes twice.
    """
    named: dict[str, str] = {}
    for word in words_in(text):
        name, _, value = word.partition("=")
        if not name or not value:
            raise SettingError(f"{text!r:.200}: {word!r:.80} is not of the form {form}")
        if name in named:
            raise SettingError(f"{text!r:.200}: {name!r:.80} is named twice; expected {form}")
        named[name] = value
    return named


def model_and_behaviour(name: str) -> tuple[str, str]:
    """Split a name such as `demo:helpful=0.7`; of one without weights, such as `llama:8b`, the second part is empty."""
    found = _NAME_WITH_BEHAVIOUR.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def parse_behaviour(text: str) -> dict[str, Any]:
    """The `eft` object that `helpful=0.7 harmless=0.3 scale=0.5 amplify=1.2 filter=expert:0.9` says.

    Raises:
        SettingError: A word has another form, or a value that cannot be.
    """
    eft: dict[str, Any] = {}
    for name, value in words_by_name(text).items():
        if name == "filter":
            eft["filter"] = parse_filter(value)
        elif name in FACTORS:
            eft[name] = number_in(name, value)
        else:
            eft.setdefault("weights", {})[name] = number_in(name, value, f"; expected {_FORM}")
    return eft


def parse_weights(text: str) -> dict[str, float]:
    """The weights that `helpful=0.7,harmless=0.3` says, one at least.

    Raises:
        SettingError: It has another form, or says something else.
    """
    eft = parse_behaviour(text)
    weights: dict[str, float] = eft.pop("weights", {})
    for name in eft:
        raise SettingError(
            f"{text!r:.200}: {name} is no expert; set it separately (--{name}, in a chat /{name})"
        )
    if not weights:
        raise SettingError(f"{text!r:.200}: no weight in it; expected {_FORM}")
    return weights


def parse_filter(text: str) -> dict[str, Any] | None:
    """The `filter` that `expert:0.9` or `base:0.9` says; None for `off`.

    Raises:
        SettingError: It has another form, or is no share.
    """
    if text == "off":
        return None
    kind, _, top_p = text.partition(":")
    if kind not in ("expert", "base"):
        raise SettingError(
            f"filter must be expert:TOP_P or base:TOP_P, such as expert:0.9, or off, not {text!r:.80}"
        )
    value = number_in("filter's TOP_P", top_p)
    if not 0 <= value <= 1:
        raise SettingError(f"filter's TOP_P is out of bounds: {value:g}; allowed: 0 to 1")
    return {"kind": kind, "top_p": value}


def number_in(name: str, text: str, right: str = "") -> float:
    """A finite number.

    Args:
        name: What it is to be.
        text: What was typed.
        right: What follows in the message.

    Raises:
        SettingError: The text is none; the message names what it was to be.
    """
    value = finite_number(text)
    if value is None:
        raise SettingError(f"{name} must be a number, not {text!r:.80}{right}")
    return value
