"""JSON grammars that allow only valid JSON, and no endless white space.

xgrammar's grammars for JSON schemas have three faults. Strings with ``minLength``, ``maxLength``, ``pattern`` and some
formats allow characters that are not valid in JSON strings, and cannot hold a quotation mark or a line break, which
JSON escapes. Any amount of white space is allowed between two tokens, so that a model may write it for ever. Here our
own rules replace both: a placeholder takes the place of such a string in the schema, and then of its rule in the
grammar. For the third fault, further keys of an object, see `json_keys`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import xgrammar
from typing_extensions import override
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from eft_server.engine.core.json_keys import with_distinct_keys
from eft_server.engine.core.json_patterns import FORMATS, json_regex
from eft_server.engine.patches import overwrite

if TYPE_CHECKING:
    from vllm.v1.request import Request

__all__ = ["END", "INDENT", "JsonCompiler", "byte_compiler", "write_json"]

END = 256
"""The end token in the vocabulary of `byte_compiler`, after the bytes."""

INDENT = 20
"""The most spaces that may follow a line break between two tokens: five levels of four spaces."""

_MARKED = 16
"""A limit on white space for xgrammar, which makes all places for white space recognisable in its grammar."""

_SPACE = re.compile(
    rf'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|(?P<space>\bwhitespace(?:_\d+)?\{{0, {_MARKED}\}})'
)
"""Such a place, or a string or a set of characters, which may look the same."""

_ON_STRINGS = ("minLength", "maxLength", "pattern", "format")
_NAMED = frozenset({"properties", "$defs", "definitions", "patternProperties"})
_LISTED = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_SINGLE = frozenset({"items", "additionalProperties"})

_CHARACTER = r'(?:[^\x00-\x1f"\\]|\\(?:["\\/bfnrt]|u(?:[0-9A-Ca-cEFef][0-9A-Fa-f]|[Dd][0-7])[0-9A-Fa-f]{2}))'
"""A character in a JSON string. Half a surrogate pair is not one: lengths count whole characters."""

_RUN = 32
"""Characters that are counted one by one. xgrammar precomputes the tokens that may follow each of up to 128; beyond
that it would try the whole vocabulary at every step. So longer strings are made of runs."""

_SPACING = rf"""
eft_space ::= "" | " " | "\n" eft_indent
eft_indent ::= [ ]{{0,{INDENT}}} | [\t]{{1,{INDENT}}}
"""
"""White space between two tokens: none, a space, or a line break and an indent."""


class JsonCompiler:
    """An xgrammar compiler whose JSON is always valid; everything else is delegated."""

    def __init__(self, compiler: xgrammar.GrammarCompiler) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)

    def compile_json_schema(self, schema: str, **options: Any) -> xgrammar.CompiledGrammar:
        """Compile a JSON schema.

        Raises:
            ValueError: The schema has a pattern that cannot be enforced.
            RuntimeError: xgrammar cannot compile the schema.
        """
        holes = _Holes(schema)
        left = json.dumps(holes.without_strings(json.loads(schema)))
        grammar = xgrammar.Grammar.from_json_schema(left, **options, max_whitespace_cnt=_MARKED)
        return self._compiler.compile_grammar(holes.filled(grammar))

    def compile_structural_tag(self, tag: Any, *triggers: Any) -> xgrammar.CompiledGrammar:
        """Compile a structural tag and the JSON schemas inside it.

        Raises:
            ValueError: A schema has a pattern that cannot be enforced.
            RuntimeError: xgrammar cannot compile the tag.
        """
        if not isinstance(tag, str):
            return self._compiler.compile_structural_tag(tag, *triggers)
        holes = _Holes(tag)
        bounded = json.loads(tag)
        for content in _schemas_in(bounded):
            content["max_whitespace_cnt"] = _MARKED
            content["json_schema"] = holes.without_strings(content["json_schema"])
        grammar = xgrammar.Grammar.from_structural_tag(json.dumps(bounded))
        return self._compiler.compile_grammar(holes.filled(grammar))


@cache
def byte_compiler() -> JsonCompiler:
    """A compiler over a vocabulary of the 256 bytes, whose result holds for any vocabulary."""
    alphabet: list[Any] = [bytes([byte]) for byte in range(END)]
    bytes_only = xgrammar.TokenizerInfo(
        [*alphabet, "</s>"], xgrammar.VocabType.RAW, vocab_size=END + 1, stop_token_ids=[END]
    )
    return JsonCompiler(xgrammar.GrammarCompiler(bytes_only, max_threads=1, cache_enabled=False))


class _Backend(XgrammarBackend):
    """vLLM's backend with that compiler."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.compiler = JsonCompiler(self.compiler)  # type: ignore[assignment]


def write_json(manager: StructuredOutputManager) -> None:
    """Give vLLM's manager our backend when the first request needs one, in place of vLLM's."""
    begin = manager.grammar_init

    def begin_with_ours(request: "Request") -> None:
        if manager.backend is None and request.structured_output_request is not None:
            config = manager.vllm_config
            size = config.model_config.get_vocab_size()
            backend = _Backend(config, tokenizer=manager.tokenizer, vocab_size=size)
            overwrite(manager, "backend", backend)
        begin(request)

    overwrite(manager, "grammar_init", begin_with_ours)


class _Holes:
    """The strings removed from a schema, a constant in place of each, and the rules that replace the constants.

    Args:
        text: A text in which the constants must not occur.
    """

    def __init__(self, text: str) -> None:
        self._mark = "eft_string"
        while self._mark in text:
            self._mark += "_"
        self.rules: list[tuple[str, str]] = []

    def without_strings(self, schema: Any) -> Any:
        """The schema with a constant in place of every string that xgrammar would get wrong."""
        if not isinstance(schema, dict):
            return schema
        inner = {key: self._inner(key, value) for key, value in schema.items()}
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if (
            not isinstance(kinds, list)
            or "string" not in kinds
            or _is_chosen(schema)
            or not _is_wrong(schema)
        ):
            return inner
        rest = {key: value for key, value in inner.items() if key not in ("type", *_ON_STRINGS)}
        hole = {"const": self._hole(schema)}
        others = [kind for kind in kinds if kind != "string"]
        # Keywords beside the choice have no effect, but references may lead there.
        return rest | ({"anyOf": [hole, rest | {"type": others}]} if others else hole)

    def filled(self, grammar: xgrammar.Grammar) -> str:
        """The grammar's text with rules in place of the constants; in XML, strings have no quotation marks."""
        text = _SPACE.sub(
            lambda found: "eft_space" if found["space"] else found[0], with_distinct_keys(str(grammar))
        )
        for index, (in_json, bare) in enumerate(self.rules):
            name = f"{self._mark}_{index}"
            text = text.replace(f'"\\"{name}:\\""', name).replace(f'"{name}:"', f"{name}_bare")
            text += f'\n{name} ::= "\\"" {in_json} "\\""\n{name}_bare ::= {bare}'
        if "eft_run" in text:
            text += f"\neft_run ::= {_characters(_RUN, _RUN)}\neft_rest ::= {_characters(0, _RUN - 1)}"
        return text + _SPACING

    def _inner(self, key: str, value: Any) -> Any:
        if key in _NAMED and isinstance(value, dict):
            return {name: self.without_strings(part) for name, part in value.items()}
        if key in _LISTED and isinstance(value, list):
            return [self.without_strings(part) for part in value]
        return self.without_strings(value) if key in _SINGLE else value

    def _hole(self, schema: Mapping[str, Any]) -> str:
        rules = _rules(schema)
        if rules not in self.rules:
            self.rules.append(rules)
        return f"{self._mark}_{self.rules.index(rules)}:"


def _is_chosen(schema: Mapping[str, Any]) -> bool:
    """Whether values or schemas are listed: xgrammar ignores keywords beside such a list."""
    return any(key in schema for key in ("const", "enum", "anyOf", "allOf", "oneOf", "$ref"))


def _is_wrong(schema: Mapping[str, Any]) -> bool:
    return any(key in schema for key in _ON_STRINGS[:-1]) or schema.get("format") in FORMATS


def _rules(schema: Mapping[str, Any]) -> tuple[str, str]:
    """The right sides of two rules: for a string's content in JSON, and for the bare string."""
    pattern = FORMATS.get(schema.get("format", ""), schema.get("pattern"))
    if pattern is not None:
        if not isinstance(pattern, str):
            raise ValueError(f"pattern is {pattern!r}; it must be a string")
        return (
            f"Regex({json.dumps(json_regex(pattern))})",
            f"Regex({json.dumps(pattern, ensure_ascii=False)})",
        )
    least, most = (_length(schema, key) for key in ("minLength", "maxLength"))
    if most is not None and most < (least or 0):
        raise ValueError(f"minLength {least} is greater than maxLength {most}")
    times = f"{{{least or 0},{'' if most is None else most}}}"
    return _counted(least or 0, most), f"[\\0-\\U0010ffff]{times}"


def _counted(least: int, most: int | None) -> str:
    if (most or least) <= _RUN:
        return _characters(least, most)
    if least:
        runs, rest = divmod(least, _RUN)
        return f"eft_run{{{runs}}} {_characters(rest, rest)} {_counted(0, most and most - least)}"
    if most is None:
        return _characters(0, None)
    runs, rest = divmod(most, _RUN)
    return f"(eft_run{{0,{runs - 1}}} eft_rest | eft_run{{{runs}}} {_characters(0, rest)})"


def _characters(least: int, most: int | None) -> str:
    times = f"{{{least},{'' if most is None else most}}}"
    return f"Regex({json.dumps(_CHARACTER + times)})"


def _length(schema: Mapping[str, Any], key: str) -> int | None:
    length = schema.get(key)
    length = int(length) if isinstance(length, float) and length.is_integer() else length
    if length is not None and (type(length) is not int or not 0 <= length < 2**31):
        raise ValueError(f"{key} is {length!r}; it must be a whole number from 0")
    return length


def _schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    """The JSON schemas in a structural tag, without those nested inside another schema."""
    if isinstance(node, dict) and node.get("type") == "json_schema":
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _schemas_in(inner)
