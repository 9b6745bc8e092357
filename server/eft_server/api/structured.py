"""Structured output: which response formats and JSON schemas are taken.

The engine's grammars leave out what they do not know, silently. So a schema may use only the keywords that
they enforce, and must not refer to itself: such a grammar would have no end.
"""

from collections.abc import Iterator
from typing import Any

from eft_server.api.checks import FieldError
from eft_server.config import ServerOptions
from eft_server.errors import shown

__all__ = ["check_response_format"]

MAX_SCHEMAS = 1000
"""How many schemas, counting those inside others, one request may bring."""

_FORMAT_KEYS = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
_WRAPPER_KEYS = frozenset({"name", "description", "schema", "strict"})

_ANNOTATIONS = frozenset({"$schema", "$comment", "title", "description", "default", "examples"})
_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_BESIDE_REF = _ANNOTATIONS | {"$ref", "$defs", "definitions"}
_KEYWORDS = _BESIDE_REF.union(
    _NAMED,
    _LISTED,
    _SINGLE,
    ("type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    ("minLength", "maxLength", "pattern", "format"),
)


def check_response_format(value: Any, _options: ServerOptions) -> None:
    """Check a response_format: text, json_object, or json_schema with a schema that can be enforced.

    Raises:
        FieldError: Another type, an unknown key, no schema, a schema that is too large, a keyword that would be
            left out, a reference that leads nowhere, outside, or back to where it stands.
    """
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(kind, str) or not isinstance(value, dict) or kind not in _FORMAT_KEYS:
        raise FieldError(f"{shown(kind)} is not one of {', '.join(_FORMAT_KEYS)}", ".type")
    for key in value:
        if key not in _FORMAT_KEYS[kind]:
            raise FieldError(f"not supported with type {kind}", f".{key}")
    if kind == "json_schema":
        _check_wrapper(value.get("json_schema"))


def _check_wrapper(wrapper: Any) -> None:
    if not isinstance(wrapper, dict) or not isinstance(wrapper.get("schema"), dict):
        raise FieldError("an object with name and schema is needed", ".json_schema")
    for key in wrapper:
        if key not in _WRAPPER_KEYS:
            raise FieldError("not supported", f".json_schema.{key}")
    try:
        _check_schema(wrapper["schema"])
    except FieldError as error:
        raise FieldError(str(error), ".json_schema.schema") from None


def _check_schema(root: dict[str, Any]) -> None:
    """Visit every schema from the root, depth first; meeting one that is still open is a cycle."""
    done: set[int] = set()
    being_visited: set[int] = set()
    stack: list[tuple[dict[str, Any], bool]] = [(root, False)]
    while stack:
        schema, leaving = stack.pop()
        if leaving:
            being_visited.discard(id(schema))
            done.add(id(schema))
        elif id(schema) in being_visited:
            raise FieldError("the schema refers to itself; only schemas without cycles are supported")
        elif id(schema) not in done:
            _check_keywords(schema)
            being_visited.add(id(schema))
            stack.append((schema, True))
            stack.extend((inner, False) for inner in _inner_schemas(schema, root))
        if len(done) + len(being_visited) > MAX_SCHEMAS:
            raise FieldError(f"the schema is too large; allowed: up to {MAX_SCHEMAS} schemas within it")


def _check_keywords(schema: dict[str, Any]) -> None:
    known = _BESIDE_REF if "$ref" in schema else _KEYWORDS
    for keyword in schema:
        if keyword not in known:
            place = " beside $ref" if keyword in _KEYWORDS else ""
            raise FieldError(f"the keyword {shown(keyword)} is not supported{place}")


def _inner_schemas(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = [schema[keyword] for keyword in _SINGLE if keyword in schema]
    for keyword in _NAMED:
        named = schema.get(keyword, {})
        if not isinstance(named, dict):
            raise FieldError(f"{keyword} is {shown(named)}; it has to be an object")
        inner.extend(named.values())
    for keyword in _LISTED:
        listed = schema.get(keyword, [])
        if not isinstance(listed, list):
            raise FieldError(f"{keyword} is {shown(listed)}; it has to be a list")
        inner.extend(listed)
    if "$ref" in schema:
        inner.append(_target(schema["$ref"], root))
    for item in inner:
        if isinstance(item, dict):
            yield item
        elif not isinstance(item, bool):
            raise FieldError(f"{shown(item)} stands where a schema has to")


def _target(reference: Any, root: dict[str, Any]) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise FieldError(f"$ref {shown(reference)} is not supported; refer to '#/…' within the schema")
    node: Any = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or key not in node:
            raise FieldError(f"$ref {shown(reference)} leads nowhere")
        node = node[key]
    return node
