"""Further keys of JSON objects, which must differ from the schema's properties in any spelling.

xgrammar may allow one of the properties as a further key: if it is spelt with escapes, or with letters that are not
ASCII, whose bytes it takes for characters. JSON parsers use the last of equal keys, whose value would have another
schema. So each key gets only one spelling.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Mapping

__all__ = ["with_distinct_keys"]

_RULE = re.compile(r"^(\w+_addl_key)(_\d+)? ::= (.*)$", re.MULTILINE)
_END = r'("\"")'
"""The quotation mark after a key, where a key may end: not at the end of a property's name."""

_STEP = re.compile(r'\("((?:\\.|[^"\\])+)" (\w+_addl_key_\d+)\)')
_FIRST = re.compile(r'\(\("\\"" (\w+_addl_key_\d+)\)\)')

_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_REST = rf'(?:[^\x00-\x1f"\\]|\\[{re.escape("".join(_ESCAPES.values()))}])*"'


def with_distinct_keys(grammar: str) -> str:
    """The text of an xgrammar grammar, with our rules for further keys."""
    rules = {found[1] + (found[2] or ""): found[3] for found in _RULE.finditer(grammar)}
    begins = {first[1] for rule in rules.values() if (first := _FIRST.match(rule))}
    if not begins:
        return grammar
    kept = _RULE.sub(lambda found: "" if found[2] else found[0], grammar)
    own = [line for name in begins for line in _other_keys(name, set(_names(name, rules)))]
    return "\n".join([kept, *own, f"eft_key ::= Regex({json.dumps(_REST)})"])


def _names(begin: str, rules: Mapping[str, str]) -> Iterator[str]:
    """The properties' names, from the rules that spell them byte by byte."""
    pending = [(begin, b"")]
    while pending:
        name, so_far = pending.pop()
        if _END not in rules[name]:
            yield so_far.decode("utf-8", "replace")
        steps = _STEP.findall(rules[name])
        pending += [
            (after, so_far + codecs.decode(sign, "unicode_escape").encode("latin-1")) for sign, after in steps
        ]


def _other_keys(begin: str, names: set[str]) -> Iterator[str]:
    """Rules for the rest of a key, after its first quotation mark, that is not one of these names."""
    pending, numbers = [(begin, names)], itertools.count()
    while pending:
        rule, rests = pending.pop()
        ways = [] if "" in rests else ['"\\""']
        firsts = sorted({rest[0] for rest in rests if rest})
        for first in firsts:
            after = f"{begin}_{next(numbers)}"
            ways.append(f"{json.dumps(_spelt(first), ensure_ascii=False)} {after}")
            pending.append((after, {rest[1:] for rest in rests if rest.startswith(first)}))
        ways.append(f'[^\\x00-\\x1f"\\\\{"".join(map(_in_a_set, firsts))}] eft_key')
        escapes = [sign for character, sign in _ESCAPES.items() if character not in firsts]
        ways += [f'"\\\\" [{"".join(map(_in_a_set, escapes))}] eft_key'] if escapes else []
        yield f"{rule} ::= {' | '.join(f'({way})' for way in ways)}"


def _spelt(character: str) -> str:
    """The character as it stands in a JSON string."""
    return json.dumps(character, ensure_ascii=False)[1:-1]


def _in_a_set(character: str) -> str:
    return f"\\U{ord(character):08x}"
