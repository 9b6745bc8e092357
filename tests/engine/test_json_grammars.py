"""What JSON grammars let through: only JSON, all of it that the schema allows, and little white space."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import xgrammar

from eft_server.engine.core import json_grammars
from eft_server.engine.core.json_grammars import END, INDENT, byte_compiler, write_json
from eft_server.engine.core.json_keys import with_distinct_keys
from eft_server.engine.core.json_patterns import json_regex


def accepts(compiled: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled)
    return all(map(matcher.accept_token, text.encode())) and matcher.accept_token(END)


def fits(schema: dict[str, Any], text: str) -> bool:
    return accepts(byte_compiler().compile_json_schema(json.dumps(schema)), text)


def walked(compiled: Any, seed: int) -> bytes | None:
    """A text that the grammar lets through, with a liking for what is special in JSON; None if it gets too long."""
    rng = random.Random(seed)
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    text = b""
    for _ in range(80):
        matcher.fill_next_token_bitmask(mask, 0)
        words = mask[0].tolist()
        allowed = [byte for byte in range(END) if words[byte >> 5] >> (byte & 31) & 1]
        if int(mask[0, END >> 5]) & 1 and (not allowed or rng.random() < 0.5):
            return text
        special = [byte for byte in allowed if byte in b'"\\\n\t\0ntu0']
        byte = rng.choice(special if special and rng.random() < 0.6 else allowed)
        assert matcher.accept_token(byte)
        text += bytes([byte])
    return None


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ('"ab"', True),
        ('"abcd"', True),
        ('"a\\n"', True),
        ('"\\"\\\\"', True),
        ('"\\u0041\\u00e9"', True),
        ('"éé"', True),
        ('"a😀"', True),
        ('"a"', False),
        ('"abcde"', False),
        ('"a\\nbcd"', False),
        ('"a\tb"', False),
        ('"a\nb"', False),
        ('"a\0b"', False),
        ('"\\ud83d\\ude00"', False),
        ('"""', False),
    ],
)
def test_lengths_count_characters_of_json_strings(text: str, whether: bool) -> None:
    assert fits({"type": "string", "minLength": 2, "maxLength": 4}, text) is whether


@pytest.mark.parametrize("least", [0, 1, 31, 32, 33, 70])
@pytest.mark.parametrize("more", [None, 0, 1, 31, 32, 63, 64, 100])
def test_lengths_are_exact_however_long(least: int, more: int | None) -> None:
    most = None if more is None else least + more
    bounds = {"minLength": least} if most is None else {"minLength": least, "maxLength": most}
    compiled = byte_compiler().compile_json_schema(json.dumps({"type": "string"} | bounds))
    for length in range(max(200, (most or 0) + 2)):
        text = '"' + "".join(("a", '\\"', "é")[place % 3] for place in range(length)) + '"'
        assert len(json.loads(text)) == length
        assert accepts(compiled, text) is (least <= length and (most is None or length <= most))


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (
            r"^[^x]+$",
            ['"a"', r'"\""', r'"\n"', r'"\\"', r'"\u0001"', '"é"'],
            ['"x"', '"\n"', '"""', '"\x01"'],
        ),
        (r'^"$', [r'"\""'], ['"""', '"a"']),
        (r"^a\nb$", [r'"a\nb"'], ['"a\nb"', r'"a\\nb"']),
        (r"^\\d$", [r'"\\d"'], [r'"\d"', '"1"']),
        (r"^\\\d$", [r'"\\1"'], [r'"\1"', '"1"']),
        (r"^a|b$", ['"a"', '"b"'], ['"ab"']),
        (r"^.$", ['"a"', r'"\t"', '"😀"'], [r'"\n"', '"\t"', '"ab"']),
        (r"^[\w.-]+@[\w-.]+$", ['"a.b@c-d"'], ['"a@b c"']),
        (r"^[\]\\^-]{2}$", [r'"]\\"', '"^-"'], ['"a]"']),
        (r"^(?<year>\d{4})-\d\d??$", ['"1999-12"', '"1999-1"'], ['"199-12"']),
        (r"^[\u00e0-\u00ff\x41\u{1F600}]$", ['"é"', '"A"', '"😀"'], ['"e"']),
        (r"^[^\S ]$", [r'"\t"', '"\u3000"'], ['" "', '"\t"', '"a"']),
    ],
)
def test_patterns_are_of_characters_and_not_of_their_json(
    pattern: str, right: list[str], wrong: list[str]
) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert [fits(schema, text) for text in (*right, *wrong)] == [True] * len(right) + [False] * len(wrong)


@pytest.mark.parametrize(
    "pattern",
    [
        r"a(?=b)",
        r"\bfox",
        r"(a)\1",
        r"a(^b)",
        r"a$b",
        r"\p{L}",
        r"[^\s\S]",
        "a{",
        "(?i)a",
        "[b-a]",
        "[]",
        r"\u{110000}",
    ],
)
def test_patterns_that_cannot_be_enforced_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(ValueError, match="the pattern"):
        json_regex(pattern)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1, "maxLength": 5},
        {"type": "string", "minLength": 3},
        {"type": "string", "pattern": "."},
        {"type": "string", "pattern": r'^[^a]?(\W|\n|")+$'},
        *(
            {"type": "string", "format": kind}
            for kind in (
                *(
                    "email",
                    "date",
                    "time",
                    "date-time",
                    "duration",
                    "ipv4",
                    "ipv6",
                    "hostname",
                    "uuid",
                    "uri",
                ),
                *("uri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
            )
        ),
        {"const": 'a"\n\\'},
        {"enum": ['"', "\n", {"a\tb": "\\"}]},
        {"type": "object", "properties": {'"\n': {"type": "string", "maxLength": 2}}, "required": ['"\n']},
    ],
    ids=json.dumps,
)
def test_whatever_is_let_through_is_json(schema: dict[str, Any]) -> None:
    compiled = byte_compiler().compile_json_schema(json.dumps(schema))
    found = [text for seed in range(60) if (text := walked(compiled, seed)) is not None]
    assert len(found) > 5
    for text in found:
        json.loads(text.decode("utf-8", "replace"))


def test_strings_are_put_right_wherever_they_are() -> None:
    short = {"type": ["string", "null", "object"], "maxLength": 1, "properties": {"x": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/sign"},
            "b": {
                "type": "array",
                "items": {"anyOf": [{"type": "string", "maxLength": 1}, {"type": "integer"}]},
            },
            "maxLength": short,
            "d": {"$ref": "#/properties/maxLength/properties/x"},
            "e": {"const": {"type": "string", "maxLength": 1}},
        },
        "required": ["a", "b", "maxLength", "d", "e"],
        "$defs": {"sign": {"type": "string", "pattern": "^\n$"}},
    }
    text = r'{"a": "\n", "b": ["\"", 5], "maxLength": %s, "d": 1, "e": {"type":"string","maxLength":1}}'
    for value in ('"\\\\"', "null", '{"x": 1}'):
        assert fits(schema, text % value)
    assert not fits(schema, text % '"\t"')
    assert not fits(schema, text % '"ab"')


NAMES = ("", "a", "ab", 'q"é', "\\", "\n", "]^-", "😀", "\x01")


@pytest.mark.parametrize("named", [NAMES, ("a",), ("ab", "ac"), ('"', "\\", "\b", "\f", "\n", "\r", "\t")])
def test_a_further_key_is_none_of_the_properties(named: tuple[str, ...]) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in named},
        "additionalProperties": {"type": "boolean"},
    }
    for key in {*NAMES, *named, "x", "abc", "é", 'q"', 'q"è', "\\\\", "\n\n", "]", "😁", "a/b"}:
        written = json.dumps(key, ensure_ascii=False)
        further = key not in named and key != "\x01"  # That one has no spelling but by its number.
        assert fits(schema, f"{{{written}: true}}") is further, key
        assert fits(schema, f"{{{written}: 1}}") is (key in named), key
    assert fits(schema, '{"x": true, "y": false}')


def test_a_length_may_be_written_as_a_float() -> None:
    assert fits({"type": "string", "maxLength": 2.0}, '"ab"')
    assert not fits({"type": "string", "maxLength": 2.0}, '"abc"')


def test_names_beyond_the_basic_plane_are_followed_as_one_character() -> None:
    names = {"😀": {"type": "integer"}, "😀a": {"type": "integer"}}
    schema = {"type": "object", "properties": names, "additionalProperties": {"type": "boolean"}}
    assert fits(schema, '{"😀b": true}')
    assert not fits(schema, '{"😀a": true}')


@pytest.mark.parametrize("length", [250, 500, 1000])
def test_the_rules_of_further_keys_are_as_long_as_the_names(length: int) -> None:
    schema = {"type": "object", "properties": {"a" * length: {}}, "additionalProperties": True}
    text = str(xgrammar.Grammar.from_json_schema(json.dumps(schema)))
    assert len(with_distinct_keys(text)) < 3 * len(text)


@pytest.mark.parametrize("key", [r"\u0061", r"\u0061b", r"\u00e9", r"a\/b"])
def test_a_further_key_is_spelt_in_one_way(key: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "é": {}, "a/b": {}}}
    schema |= {"additionalProperties": {"type": "boolean"}}
    assert not fits(schema, f'{{"{key}": true}}')


def test_objects_within_objects_have_further_keys_of_their_own() -> None:
    inner = {
        "type": "object",
        "properties": {"b": {"type": "null"}},
        "additionalProperties": {"type": "integer"},
    }
    schema = {"type": "object", "properties": {"a": inner}, "additionalProperties": inner}
    assert fits(schema, '{"a": {"b": null, "a": 1}, "b": {"c": 2}}')
    assert not fits(schema, '{"a": {"b": 1}}')
    assert not fits(schema, '{"a": {"\\u0062": 1}}')
    assert not fits(schema, '{"c": {"b": 1}}')


@pytest.mark.parametrize(
    "schema", [{"type": "object", "additionalProperties": True}, {"items": {"maxLength": 1}}]
)
def test_white_space_between_tokens_is_a_space_or_a_line_and_an_indent(schema: dict[str, Any]) -> None:
    opening, closing = ("[", "]") if "items" in schema else ("{", "}")
    for space in ("", " ", "\n", "\n" + " " * INDENT, "\n\t\t"):
        assert fits(schema, opening + space + closing)
    for space in ("  ", "\n\n", " \n", "\t", "\n" + " " * (INDENT + 1)):
        assert not fits(schema, opening + space + closing)


def test_both_ways_to_write_json_are_possible() -> None:
    value = {"a": [1, {"b": "c", "d": []}], "whitespace_1{0, 16}": "whitespace{0, 16}"}
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {}},
            "whitespace_1{0, 16}": {"const": "whitespace{0, 16}"},
        },
        "required": list(value),
    }
    for options in ({}, {"separators": (",", ":")}, {"indent": 4}, {"indent": "\t"}):
        assert fits(schema, json.dumps(value, **options))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": "5"},
        {"type": "string", "maxLength": 2.5},
        {"type": "string", "minLength": -1},
        {"type": "string", "minLength": 5, "maxLength": 4},
        {"type": "string", "maxLength": 2**31},
        {"type": "string", "pattern": 5},
    ],
)
def test_what_is_no_length_or_pattern_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Length|pattern"):
        byte_compiler().compile_json_schema(json.dumps(schema))


def tag(schema: Any, style: str = "json") -> str:
    content = {"type": "json_schema", "json_schema": schema, "style": style}
    return json.dumps(
        {
            "type": "structural_tag",
            "format": {"type": "tag", "begin": "<t>", "content": content, "end": "</t>"},
        }
    )


def test_a_tools_arguments_are_json_as_well() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2}}, "required": ["a"]}
    compiled = byte_compiler().compile_structural_tag(tag(schema))
    assert accepts(compiled, r'<t>{"a": "\"\n"}</t>')
    assert not accepts(compiled, '<t>{"a": "\t"}</t>')
    assert not accepts(compiled, '<t>{"a": "abc"}</t>')
    for content in (schema, True):
        spaced = "<t>{" + "  " + '"a": "b"}</t>'
        assert not accepts(byte_compiler().compile_structural_tag(tag(content)), spaced)


def test_arguments_in_xml_are_bare_and_what_is_inside_them_is_json() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string", "maxLength": 1}}, "required": ["b"]}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": '^"é$'}, "c": inner},
        "required": ["a", "c"],
    }
    compiled = byte_compiler().compile_structural_tag(tag(schema, "qwen_xml"))
    text = '<t><parameter=a>"é</parameter><parameter=c>{"b": %s}</parameter></t>'
    assert accepts(compiled, text % r'"\n"')
    assert not accepts(compiled, text % '"\n"')
    assert not accepts(compiled, text % '"ab"')


def test_the_engines_grammars_are_these(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(json_grammars, "_Backend", lambda *args, **options: made.append(options) or "ours")
    begun: list[Any] = []
    config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 7))
    manager: Any = SimpleNamespace(backend=None, vllm_config=config, tokenizer="t", grammar_init=begun.append)
    write_json(manager)
    plain, constrained = (SimpleNamespace(structured_output_request=request) for request in (None, "json"))
    manager.grammar_init(plain)
    assert manager.backend is None
    manager.grammar_init(constrained)
    manager.grammar_init(constrained)
    assert (manager.backend, made) == ("ours", [{"tokenizer": "t", "vocab_size": 7}])
    assert begun == [plain, constrained, constrained]
