"""Checks of single request values: small functions for a table of fields."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = [
    "Bound",
    "Check",
    "FieldError",
    "flag",
    "integer",
    "items",
    "number",
    "one_of",
    "text",
    "token_biases",
    "token_ids",
]

Check: TypeAlias = Callable[[Any, ServerOptions], None]
"""Raises FieldError if a value is not acceptable under the operator's options."""

Bound: TypeAlias = int | str
"""A number, or the name of the server option that holds it."""

MAX_TOKEN_ID = 2**31 - 1
_TOKEN_ID = re.compile(r"(0|[1-9][0-9]{0,9})")


class FieldError(ValueError):
    """A value is not acceptable.

    Attributes:
        place: Where inside the field, such as ``.2.role``; empty for the field itself.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def integer(least: int, most: Bound) -> Check:
    """A whole number within bounds; true, 1.0 and "1" are not whole numbers."""

    def check(value: Any, options: ServerOptions) -> None:
        limit = getattr(options, most) if isinstance(most, str) else most
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
            raise FieldError(f"{shown(value)} is not a whole number from {least} to {limit}")

    return check


def number(least: float, most: float, *, above: bool = False) -> Check:
    """A number within bounds; `above` excludes the lower bound."""

    def check(value: Any, _options: ServerOptions) -> None:
        if not _is_number(value) or not least <= value <= most or (above and value == least):
            span = f"above {least:g} and up to {most:g}" if above else f"from {least:g} to {most:g}"
            raise FieldError(f"{shown(value)} is not a number {span}")

    return check


def flag(value: Any, _options: ServerOptions) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise FieldError(f"{shown(value)} is not true or false")


def text(most_chars: int, *, pattern: str | None = None) -> Check:
    """A non-empty string of bounded length that matches the pattern, if one is given."""

    def check(value: Any, _options: ServerOptions) -> None:
        if not isinstance(value, str) or not 0 < len(value) <= most_chars:
            raise FieldError(f"{shown(value)} is not a string of 1 to {most_chars} characters")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise FieldError(f"{shown(value)} does not match {pattern}")

    return check


def one_of(*known: str) -> Check:
    """One of the known strings."""

    def check(value: Any, _options: ServerOptions) -> None:
        if value not in known:
            raise FieldError(f"{shown(value)} is not supported; known: {', '.join(known)}")

    return check


def items(of: Check, most: Bound, *, or_one: bool = False) -> Check:
    """A list of bounded length; `or_one` also takes a single item that is not in a list."""

    def check(value: Any, options: ServerOptions) -> None:
        limit = getattr(options, most) if isinstance(most, str) else most
        if or_one and not isinstance(value, list):
            of(value, options)
            return
        if not isinstance(value, list):
            raise FieldError(f"{shown(value)} is not a list")
        if len(value) > limit:
            raise FieldError(f"a list of {len(value)} is too long; allowed: up to {limit}")
        for index, item in enumerate(value):
            try:
                of(item, options)
            except FieldError as error:
                raise FieldError(str(error), f".{index}{error.place}") from None

    return check


def token_ids(most: int) -> Check:
    """A list of token ids of bounded length. The engine checks that the vocabulary has them."""
    one_by_one = items(integer(0, MAX_TOKEN_ID), most)

    def check(value: Any, options: ServerOptions) -> None:
        # Prompts are long: check each id only if the whole list does not look right.
        plain = isinstance(value, list) and set(map(type, value)) == {int}
        if not plain or min(value) < 0 or max(value) > MAX_TOKEN_ID or len(value) > most:
            one_by_one(value, options)

    return check


def token_biases(most: int) -> Check:
    """A logit_bias of bounded size: it maps token ids, as JSON keys, to numbers from -100 to 100."""

    def check(value: Any, _options: ServerOptions) -> None:
        if not isinstance(value, Mapping):
            raise FieldError(f"{shown(value)} is not an object of token ids")
        if len(value) > most:
            raise FieldError(f"{len(value)} token ids are too many; allowed: up to {most}")
        for token_id, bias in value.items():
            if not _TOKEN_ID.fullmatch(token_id):
                raise FieldError(f"{shown(token_id)} is not a token id")
            if not _is_number(bias) or not -100 <= bias <= 100:
                raise FieldError(f"{shown(bias)} is not a number from -100 to 100", f".{token_id}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
