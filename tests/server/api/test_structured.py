"""Which JSON schemas are taken."""

from typing import Any

import pytest

from eft_server.api.requests.checks import FieldError
from eft_server.api.requests.structured import MAX_SCHEMAS, check_response_format
from eft_server.family.file import ServerOptions


def check(schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    check_response_format(wanted, ServerOptions())


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {
            "type": "object",
            "properties": {"$ref": {"type": "string"}, "not": {"type": "null"}},
            "required": ["not"],
        },
        {
            "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"type": "integer"}},
        },
        {"$defs": {"a/b": {"type": "string"}}, "anyOf": [{"$ref": "#/$defs/a~1b"}, True]},
        {"enum": [{"$ref": "#"}, {"not": 1}]},
        {"type": "array", "items": False, "prefixItems": [{"const": 1}]},
        {"type": ["string", "null"], "minLength": 3, "maxLength": 4},
        {"type": ["string", "null"], "enum": ["a", None], "title": "A"},
        {"type": "integer", "enum": [1, 2.0]},
        {"type": "object", "anyOf": [{"type": "object", "properties": {}}]},
        {"properties": {"a": {}}, "required": ["a"]},
    ],
)
def test_schemas_without_cycles_are_taken(schema: dict[str, Any]) -> None:
    check(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"next": {"$ref": "#"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"items": {"$ref": "#/$defs/a"}}}},
        {"anyOf": [{"properties": {"x": {"anyOf": [{"$ref": "#/anyOf/0"}]}}}, {"$ref": "#"}]},
    ],
)
def test_schemas_that_refer_to_themselves_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=r"refers to itself|leads nowhere"):
        check(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, "'not'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"oneOf": [{}]}, "'oneOf'"),
        ({"items": {"uniqueItems": True}}, "'uniqueItems'"),
        ({"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {}}}, r"beside \$ref"),
        ({"$ref": "other.json"}, "other.json"),
        ({"$ref": "#/$defs/a"}, "nowhere"),
        ({"$ref": 5}, "5"),
        ({"properties": []}, "properties"),
        ({"anyOf": {}}, "anyOf"),
        ({"anyOf": []}, "empty list"),
        ({"items": 5}, "5"),
        ({"minLength": 3}, "'minLength' needs type string"),
        ({"pattern": "a"}, "'pattern' needs type string"),
        ({"minimum": 3}, "'minimum' needs type number or integer"),
        ({"required": ["a"]}, "'required' needs type object"),
        ({"items": {}, "minLength": 3}, "'minLength' needs type string"),
        ({"items": {}, "properties": {}, "minItems": 1}, "'minItems' needs type array"),
        ({"type": "string", "allOf": [{"minLength": 3}]}, "type"),
        ({"type": "string", "minLength": 3, "enum": ["a"]}, "'minLength' is not supported beside enum"),
        ({"properties": {"a": {}}, "anyOf": [{}]}, "'properties' is not supported beside anyOf"),
        ({"enum": ["a"], "const": "b"}, "'enum' is not supported beside const"),
        ({"type": "integer", "enum": [1, "a"]}, "enum has 'a'"),
        ({"type": "integer", "const": True}, "const has true"),
        ({"type": "object", "anyOf": [{"type": "string"}]}, "anyOf has"),
        ({"type": "text"}, "type is 'text'"),
        ({"type": "string", "pattern": "a", "format": "date"}, "'pattern' is not supported beside format"),
        ({"type": "string", "pattern": "a" * 5000}, "1 to 2048 characters"),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, "'b', which is not among properties"),
        ({"properties": {str(n): {} for n in range(MAX_SCHEMAS)}}, "too large"),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        check(schema)
