"""Structured output: which response formats, JSON schemas and other constraints are accepted.

The engine's grammars silently ignore unknown keywords. So a schema may use only the keywords that they enforce, where
they enforce them, and must not refer to itself: its grammar would be infinite. Accepted constraints are tried out in
grammar_trial.py before the engine gets them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.v1.structured_output.backend_xgrammar import STRING_SUPPORTED_FORMATS

from eft_server.api.requests.checks import FieldError
from eft_server.errors import shown
from eft_server.family.file import ServerOptions

__all__ = ["check_response_format", "check_schema", "check_structured_outputs", "check_text"]

MAX_SCHEMAS = 1000
"""How many schemas, nested ones included, one request may bring."""

MAX_NAME_BYTES = 256
MAX_OPEN_NAMES_BYTES = 16_384
"""For properties in objects that allow further keys. The compiler recurses for each byte of a name: a name of 14,000
bytes ended the process."""

MAX_REGEX_CHARS = 2048
MAX_GRAMMAR_CHARS = 8192
MAX_CHOICES = 1024
MAX_CHOICES_CHARS = 65_536

_FORMAT_KEYS = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
_WRAPPER_KEYS = frozenset({"name", "description", "schema", "strict"})

_STRING_OR_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|(?P<token>\b(?:(?:Exclude)?Token|(?:Token)?TagDispatch)\s*\(|<\[)'
)
"""Names of token ids or tags in xgrammar's EBNF and Lark, or a string, which may hold anything."""

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

_CHOICES = ("const", "enum", "anyOf", "allOf")
_NEEDS_TYPE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), ("string",)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), ("number", "integer")
    ),
    **dict.fromkeys(("minItems", "maxItems"), ("array",)),
    **dict.fromkeys(("required", "minProperties", "maxProperties"), ("object",)),
}
"""Keywords that the backend enforces only with a type; without one, it allows anything."""

_IMPLY_TYPE = {
    "properties": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
}
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def check_response_format(value: Any, _options: ServerOptions) -> None:
    """Check a response_format: text, json_object, or json_schema with a schema that can be enforced.

    Raises:
        FieldError: The type or a key is unknown, there is no schema, the schema is too large, a keyword would be
            ignored, or a reference is broken, leads outside or is circular.
    """
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(kind, str) or not isinstance(value, dict) or kind not in _FORMAT_KEYS:
        raise FieldError(f"{shown(kind)} is not one of {', '.join(_FORMAT_KEYS)}", ".type")
    for key in value:
        if key not in _FORMAT_KEYS[kind]:
            raise FieldError(f"not supported with type {kind}", f".{key}")
    if kind == "json_schema":
        _check_wrapper(value.get("json_schema"))


def check_text(value: Any, options: ServerOptions) -> None:
    """Check a response's ``text``: an object with format, without the json_schema wrapper of chats.

    Raises:
        FieldError: As for a response_format.
    """
    if not isinstance(value, dict):
        raise FieldError(f"{shown(value)} is not an object with format")
    for key in value:
        if key != "format":
            raise FieldError("not supported; known: format", f".{key}")
    wanted = value.get("format", {"type": "text"})
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        wanted = {"type": "json_schema", "json_schema": {k: v for k, v in wanted.items() if k != "type"}}
    try:
        check_response_format(wanted, options)
    except FieldError as error:
        raise FieldError(str(error), f".format{error.place.removeprefix('.json_schema')}") from None


def check_structured_outputs(value: Any, _options: ServerOptions) -> None:
    """Check vLLM's ``structured_outputs``: one of json, regex, grammar and choice.

    Raises:
        FieldError: There is none of them or several, another key, or a value of the wrong type or too large.
    """
    known = ", ".join(_CONSTRAINTS)
    if not isinstance(value, dict):
        raise FieldError(f"{shown(value)} is not an object with one of {known}")
    for key in value:
        if key not in _CONSTRAINTS:
            raise FieldError(f"not supported; known: {known}", f".{key}")
    if len(value) != 1:
        raise FieldError(f"exactly one of {known} is needed")
    ((kind, constraint),) = value.items()
    try:
        _CONSTRAINTS[kind](constraint)
    except FieldError as error:
        raise FieldError(str(error), f".{kind}{error.place}") from None


def _check_json(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise FieldError(f"{shown(schema)} is not a JSON schema")
    check_schema(schema)


def _check_regex(pattern: Any) -> None:
    _check_string(pattern, MAX_REGEX_CHARS)
    if "\x00" in pattern:
        raise FieldError("a regular expression cannot hold a NUL character")


def _check_grammar(grammar: Any) -> None:
    _check_string(grammar, MAX_GRAMMAR_CHARS)
    for found in _STRING_OR_TOKEN.finditer(grammar):
        if found["token"]:
            raise FieldError(f"{shown(found['token'])} refers to tokens; a grammar describes text")


def _check_choice(choices: Any) -> None:
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise FieldError(f"{shown(choices)} is not a list of 1 to {MAX_CHOICES} strings")
    for index, choice in enumerate(choices):
        try:
            _check_string(choice, MAX_CHOICES_CHARS)
        except FieldError as error:
            raise FieldError(str(error), f".{index}") from None
    total = sum(map(len, choices))
    if total > MAX_CHOICES_CHARS:
        raise FieldError(f"{total} characters in all are too many; allowed: up to {MAX_CHOICES_CHARS}")


def _check_string(value: Any, most_chars: int, name: str = "") -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > most_chars:
        raise FieldError(
            f"{name}{shown(value)} is not a string of 1 to {most_chars} characters with visible text"
        )


_CONSTRAINTS: Mapping[str, Callable[[Any], None]] = {
    "json": _check_json,
    "regex": _check_regex,
    "grammar": _check_grammar,
    "choice": _check_choice,
}


def _check_wrapper(wrapper: Any) -> None:
    if not isinstance(wrapper, dict) or not isinstance(wrapper.get("schema"), dict):
        raise FieldError("must be an object with name and schema", ".json_schema")
    for key in wrapper:
        if key not in _WRAPPER_KEYS:
            raise FieldError("not supported", f".json_schema.{key}")
    try:
        check_schema(wrapper["schema"])
    except FieldError as error:
        raise FieldError(str(error), ".json_schema.schema") from None


def check_schema(root: dict[str, Any], references: str = "#") -> None:
    """Check a JSON schema, visiting every schema from the root, depth first; one that is met while open is a cycle.

    Args:
        root: The schema.
        references: The prefix that every ``$ref`` must have.

    Raises:
        FieldError: It is too large, refers to itself or outside, or has a keyword that would be ignored.
    """
    open_bytes = 0
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
            _check_keywords(schema, references)
            being_visited.add(id(schema))
            stack.append((schema, True))
            stack.extend((inner, False) for inner in _inner_schemas(schema, root))
            open_bytes += _check_names(schema)
        if open_bytes > MAX_OPEN_NAMES_BYTES:
            most = f"allowed: up to {MAX_OPEN_NAMES_BYTES} bytes"
            raise FieldError(
                f"the names of properties beside additionalProperties are too long together; {most}"
            )
        if len(done) + len(being_visited) > MAX_SCHEMAS:
            raise FieldError(f"the schema is too large; allowed: up to {MAX_SCHEMAS} schemas within it")


def _check_names(schema: Mapping[str, Any]) -> int:
    """Check the properties' names, and count their bytes if the object allows further keys."""
    names = schema.get("properties", {})
    sizes = [len(name.encode("utf-8", "surrogatepass")) for name in names] if isinstance(names, dict) else []
    if max(sizes, default=0) > MAX_NAME_BYTES:
        longest = max(names, key=len)
        raise FieldError(
            f"the property name {shown(longest)} is too long; allowed: up to {MAX_NAME_BYTES} bytes"
        )
    return sum(sizes) if schema.get("additionalProperties", False) is not False else 0


def _check_keywords(schema: dict[str, Any], references: str) -> None:
    reference = schema.get("$ref", references)
    if isinstance(reference, str) and not reference.startswith(references):
        raise FieldError(f"$ref {shown(reference)} is not supported; refer to '{references}…'")
    known = _BESIDE_REF if "$ref" in schema else _KEYWORDS
    for keyword in schema:
        if keyword not in known:
            place = " beside $ref" if keyword in _KEYWORDS else ""
            raise FieldError(f"the keyword {shown(keyword)} is not supported{place}")
    types = _types(schema)
    choice = next((keyword for keyword in _CHOICES if keyword in schema), None)
    if choice is not None:
        _check_beside_choice(schema, choice, types)
    else:
        _check_own_keywords(schema, types)


def _types(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema names or, for the backend, implies."""
    named = schema.get("type", sorted({_IMPLY_TYPE[keyword] for keyword in schema if keyword in _IMPLY_TYPE}))
    types = named if isinstance(named, list) else [named]
    for name in types:
        if not isinstance(name, str) or name not in _TYPES:
            raise FieldError(f"type is {shown(name)}; known: {', '.join(_TYPES)}")
    return types


def _check_beside_choice(schema: Mapping[str, Any], choice: str, types: list[str]) -> None:
    """Refuse keywords beside a choice: the backend looks only at the choice."""
    for keyword in schema:
        if keyword not in _ANNOTATIONS and keyword not in ("$defs", "definitions", "type", choice):
            raise FieldError(f"the keyword {shown(keyword)} is not supported beside {choice}")
    given = [schema[choice]] if choice == "const" else schema[choice]
    if "type" not in schema or not isinstance(given, list):
        return
    for one in given:
        if choice in ("const", "enum"):
            fits = any(_TYPES[name](one) for name in types)
        else:
            fits = isinstance(one, dict) and "type" in one and set(_types(one)) <= set(types)
        if not fits:
            raise FieldError(f"type is {shown(schema['type'])}, but {choice} has {shown(one)}")


def _check_own_keywords(schema: Mapping[str, Any], types: list[str]) -> None:
    for keyword in schema:
        needed = _NEEDS_TYPE.get(keyword)
        if needed and (not types or ("type" not in schema and (len(types) > 1 or types[0] not in needed))):
            raise FieldError(f"the keyword {shown(keyword)} needs type {' or '.join(needed)} beside it")
    if "pattern" in schema:
        _check_string(schema["pattern"], MAX_REGEX_CHARS, "pattern: ")
    if "pattern" in schema and "format" in schema:
        raise FieldError("the keyword 'pattern' is not supported beside format")
    for keyword in ("pattern", "format"):
        lengths = [length for length in ("minLength", "maxLength") if length in schema]
        if keyword in schema and lengths:
            raise FieldError(f"the keyword {keyword!r} is not supported beside {lengths[0]}")
    if "multipleOf" in schema:
        raise FieldError("the keyword 'multipleOf' is not supported; use minimum and maximum")
    if "format" in schema and schema["format"] not in STRING_SUPPORTED_FORMATS:
        known = ", ".join(sorted(STRING_SUPPORTED_FORMATS))
        raise FieldError(f"format is {shown(schema['format'])}; known: {known}")
    required, properties = schema.get("required", []), schema.get("properties", {})
    for name in required if isinstance(required, list) else ():
        if not isinstance(name, str) or name not in properties:
            raise FieldError(f"required has {shown(name)}, which is not among properties")


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
        if keyword in schema and not listed:
            raise FieldError(f"{keyword} is an empty list, which nothing matches")
        inner.extend(listed)
    if "$ref" in schema:
        inner.append(_target(schema["$ref"], root))
    for item in inner:
        if isinstance(item, dict):
            yield item
        elif not isinstance(item, bool):
            raise FieldError(f"{shown(item)} is not a schema")


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
