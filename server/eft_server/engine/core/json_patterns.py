"""A schema's ``pattern`` as a regular expression for JSON text, between a string's quotation marks.

xgrammar applies a pattern directly to the JSON text. So a control character would appear unescaped in a string, and a
quotation mark would end it; or xgrammar leaves these characters out. Here each set of characters in a pattern becomes
the JSON of these characters; everything around them (groups, choices, repetitions) stays.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["FORMATS", "json_regex"]

Ranges: TypeAlias = list[tuple[int, int]]
"""A set of characters: the first and the last code point of each run, in order, with gaps between them."""

FORMATS = {
    "email": r"[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*"
    r"@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*",
    "json-pointer": r"(/([^/~]|~[01])*)*",
    "relative-json-pointer": r"(0|[1-9][0-9]*)(#|(/([^/~]|~[01])*)*)",
}
"""Patterns for formats whose grammars in xgrammar allow invalid JSON."""

_LAST = 0x10FFFF
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_SIGNS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}

_TOKEN = re.compile(
    r"""
      (?P<group>\((?:\?:|\?<[A-Za-z_]\w*>|(?!\?)))
    | (?P<other>[)|])
    | (?P<anchor>[\^$])
    | (?P<repeat>(?:[*+?]|\{\d+(?:,\d*)?\})) \??
    | (?P<any>\.)
    | (?P<set>\[\^?(?:[^\]\\]|\\.)*\])
    | (?P<escape>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\}|c[A-Za-z]|0(?![0-9])|.))
    | (?P<sign>[^(){[*+?\\])
    """,
    re.VERBOSE | re.DOTALL,
)
_MEMBER = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\}|c[A-Za-z]|.)|.", re.DOTALL)


def json_regex(pattern: str) -> str:
    """A regular expression for the JSON strings, without quotation marks, that match a pattern as a whole.

    Raises:
        ValueError: A part of the pattern cannot be enforced.
    """
    tokens = list(_tokens(pattern))
    depth, written = 0, ["(?:"]
    for index, token in enumerate(tokens):
        if token.kind == "anchor":
            _check_anchor(token, tokens, index, depth, pattern)
        elif token.kind == "group":
            depth += 1
            written.append("(?:")
        elif token.kind in ("other", "repeat"):
            depth -= token.text == ")"
            written.append(token.text)
        else:
            written.append(_json_of(_characters(token, pattern), pattern))
    return "".join([*written, ")"])


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def _tokens(pattern: str) -> Iterator[_Token]:
    place = 0
    while place < len(pattern):
        found = _TOKEN.match(pattern, place)
        if found is None:
            raise _refusal(pattern, f"{pattern[place : place + 8]!r} cannot be enforced")
        kind = found.lastgroup
        assert kind is not None, "every branch of the expression has a name"
        yield _Token(kind, found[kind])
        place = found.end()


def _check_anchor(token: _Token, tokens: list[_Token], index: int, depth: int, pattern: str) -> None:
    """Refuse inner anchors: the whole string has to match anyway, so at the ends an anchor changes nothing."""
    outer = tokens[index - 1 : index] if token.text == "^" else tokens[index + 1 : index + 2]
    if depth or any(neighbour.text != "|" or neighbour.kind != "other" for neighbour in outer):
        raise _refusal(pattern, f"{token.text} is supported only at the ends of the pattern")


def _characters(token: _Token, pattern: str) -> Ranges:
    if token.kind == "any":
        return _without([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)])
    if token.kind == "set":
        return _set(token.text, pattern)
    return _escaped(token.text, pattern) if token.kind == "escape" else [(ord(token.text), ord(token.text))]


def _set(text: str, pattern: str) -> Ranges:
    negative = text.startswith("[^")
    members = [member[0] for member in _MEMBER.finditer(text[1 + negative : -1])]
    found: Ranges = []
    while members:
        first = _member(members.pop(0), pattern)
        if len(members) > 1 and members[0] == "-":
            last = _member(members[1], pattern)
            del members[:2]
            first = _range(first, last, text, pattern)
        found += first
    return _without(found) if negative else _joined(found)


def _range(first: Ranges, last: Ranges, text: str, pattern: str) -> Ranges:
    """The range from one character to another; beside a class, such as all digits, a hyphen is a plain character."""
    if not _is_single(first) or not _is_single(last):
        return [*first, (0x2D, 0x2D), *last]
    if first > last:
        raise _refusal(pattern, f"{text!r} has a range that ends before it begins")
    return [(first[0][0], last[0][0])]


def _is_single(characters: Ranges) -> bool:
    return len(characters) == 1 and characters[0][0] == characters[0][1]


def _member(text: str, pattern: str) -> Ranges:
    if text == r"\b":
        return [(8, 8)]
    return _escaped(text, pattern) if text.startswith("\\") else [(ord(text), ord(text))]


def _escaped(text: str, pattern: str) -> Ranges:
    sign = text[1:2]
    if sign.lower() in _CLASSES:
        return _CLASSES[sign] if sign.islower() else _without(_CLASSES[sign.lower()])
    if sign in "xu" and len(text) > 2:
        code = int(text[2:].strip("{}"), 16)
    elif sign == "c" and len(text) > 2:
        code = ord(text[2]) % 32
    elif sign in _SIGNS:
        code = ord(_SIGNS[sign])
    elif sign.isalnum() or not sign:
        raise _refusal(pattern, f"{text!r} cannot be enforced")
    else:
        code = ord(sign)
    if code > _LAST:
        raise _refusal(pattern, f"{text!r} is not a character")
    return [(code, code)]


def _json_of(characters: Ranges, pattern: str) -> str:
    """A group of the JSON texts of characters, each escaped only if JSON requires it."""
    plain = _minus(characters, [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)])
    ways = ["[" + "".join(f"{_sign(a)}-{_sign(b)}" for a, b in plain) + "]"] if plain else []
    ways += [rf"\\{_sign(ord(short))}" for sign, short in _SHORT.items() if _holds(characters, ord(sign))]
    ways += [
        rf"\\u{code:04x}" for code in range(0x20) if _holds(characters, code) and chr(code) not in _SHORT
    ]
    if not ways:
        raise _refusal(pattern, "it contains an empty set of characters")
    return "(?:" + "|".join(ways) + ")"


def _sign(code: int) -> str:
    return rf"\u{{{code:x}}}"


def _holds(characters: Ranges, code: int) -> bool:
    return any(first <= code <= last for first, last in characters)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: Ranges = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _without(left_out: Ranges) -> Ranges:
    return _minus([(0, _LAST)], left_out)


def _minus(ranges: Ranges, left_out: Ranges) -> Ranges:
    found = ranges
    for first, last in left_out:
        found = [
            part
            for a, b in found
            for part in ((a, min(b, first - 1)), (max(a, last + 1), b))
            if part[0] <= part[1]
        ]
    return _joined(found)


_CLASSES: dict[str, Ranges] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [
        *((9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
        *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
    ],
}
"""The classes of ECMA-262, to which JSON Schema refers."""


def _refusal(pattern: str, reason: str) -> ValueError:
    shown = pattern if len(pattern) <= 60 else pattern[:60] + "…"
    return ValueError(f"the pattern {shown!r}: {reason}")
