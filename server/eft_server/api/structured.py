"""Structured output: which response formats and JSON schemas are taken."""

from collections.abc import Iterator
from typing import Any

from eft_server.api.checks import FieldError
from eft_server.config import ServerOptions
from eft_server.errors import shown

__all__ = ["check_response_format"]

MAX_SCHEMA_NODES = 2000
_FORMAT_KEYS = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})
_OTHER_REFERENCES = ("$dynamicRef", "$recursiveRef")


def check_response_format(value: Any, options: ServerOptions) -> None:
    """Check a response_format: text, json_object, or json_schema with a schema that does not refer to itself.

    Raises:
        FieldError: Another type, an unknown key, no schema, a schema that is too large, a reference that
            leads nowhere, outside, or back to where it stands (the engine's grammar would never end).
    """
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in _FORMAT_KEYS:
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
        if key not in _SCHEMA_KEYS:
            raise FieldError("not supported", f".json_schema.{key}")
    try:
        _check_schema(wrapper["schema"])
    except FieldError as error:
        raise FieldError(str(error), ".json_schema.schema") from None


def _check_schema(schema: dict[str, Any]) -> None:
    for count, node in enumerate(_nodes(schema), start=1):
        if count > MAX_SCHEMA_NODES:
            raise FieldError(f"the schema is too large; allowed: up to {MAX_SCHEMA_NODES} objects and lists")
        if isinstance(node, dict):
            for key in _OTHER_REFERENCES:
                if key in node:
                    raise FieldError(f"{key} is not supported; use $ref")
    _check_references(schema)


def _check_references(schema: dict[str, Any]) -> None:
    """Follow every reference from the root, depth first; meeting one that is still open is a cycle."""
    done: set[int] = set()
    open_nodes: set[int] = set()
    stack: list[tuple[Any, bool]] = [(schema, False)]
    while stack:
        node, leaving = stack.pop()
        if leaving:
            open_nodes.discard(id(node))
            done.add(id(node))
        elif id(node) in open_nodes:
            raise FieldError("the schema refers to itself; only schemas without cycles are supported")
        elif id(node) not in done:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in _successors(node, schema))


def _successors(node: Any, schema: dict[str, Any]) -> Iterator[Any]:
    yield from _children(node)
    if isinstance(node, dict) and "$ref" in node:
        yield _target(node["$ref"], schema)


def _target(reference: Any, schema: dict[str, Any]) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise FieldError(f"$ref {shown(reference)} is not supported; refer to '#/…' within the schema")
    node: Any = schema
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or key not in node:
            raise FieldError(f"$ref {shown(reference)} leads nowhere")
        node = node[key]
    if not isinstance(node, dict):
        raise FieldError(f"$ref {shown(reference)} does not lead to a schema")
    return node


def _nodes(schema: Any) -> Iterator[Any]:
    stack = [schema]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(_children(node))


def _children(node: Any) -> list[Any]:
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [value for value in values if isinstance(value, dict | list)]
