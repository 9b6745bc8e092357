"""A YAML document that remembers the line of every key, and error messages that point there.

Unlike plain YAML 1.1 it reads ``1e-3`` as a number, and it refuses anchors, repeated keys, keys that are not text,
and excessive sizes or depths, none of which a family file needs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from typing_extensions import override

from eft_server.errors import ConfigError, shown

__all__ = ["Document", "KeyedError", "describe", "parse_value", "read_document"]

MAX_FILE_BYTES = 256 * 1024
MAX_OVERRIDE_CHARACTERS = 4096
MAX_DEPTH = 16
MAX_PROBLEMS = 10

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with JSON's numbers: YAML 1.1 would read ``1e-3`` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


@dataclass
class Document:
    """Plain data with its origin: the line of each key in the file, and the keys that overrides have set."""

    data: dict[str, Any]
    source: str
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: set[Key] = field(default_factory=set)

    def override(self, assignment: str) -> None:
        """Set one value from ``dotted.key=value``, the value being YAML.

        Raises:
            ConfigError: The text has no ``=``, its value is not YAML, or the key leads through a plain value.
        """
        dotted, equals, text = assignment.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key) or len(key) > MAX_DEPTH:
            raise ConfigError(f"--set {assignment[:80]!r}: write dotted.key=value, like defaults.scale=0.5")
        section = self.data
        for depth, part in enumerate(key[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
                self.overridden.add(key[:depth])
            section = section[part]
            if not isinstance(section, dict):
                head = ".".join(key[:depth])
                raise ConfigError(f"--set {dotted}: {head} is a single value; set it as a whole")
        section[key[-1]] = parse_value(text, f"--set {dotted}")
        self.overridden.add(key)

    def place(self, key: Key) -> str:
        """Where the nearest known part of a key was written: ``file:line`` or ``--set dotted.key``."""
        for length in range(len(key), -1, -1):
            head = key[:length]
            if head in self.overridden:
                return f"--set {'.'.join(map(str, head))}"
            if head in self.lines:
                return f"{self.source}:{self.lines[head]}"
        return self.source


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file cannot be read, is too large, or is not such a document.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes, too large for a family file")
    lines: dict[Key, int] = {}
    data = _parse(text, str(path), lines)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the top level must be a mapping with keys like name, base and experts")
    return Document(data, str(path), lines)


def parse_value(text: str, source: str) -> Any:
    """Parse one YAML value, such as the right side of an override.

    Raises:
        ConfigError: The text is too long or not YAML.
    """
    if len(text) > MAX_OVERRIDE_CHARACTERS:
        raise ConfigError(f"{source}: the value is longer than {MAX_OVERRIDE_CHARACTERS} characters")
    return _parse(text, source, {})


def _parse(text: str, source: str, lines: dict[Key, int]) -> Any:
    try:
        _refuse_excess(text, source)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _Builder(loader, source, lines).build(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def _refuse_excess(text: str, source: str) -> None:
    """Check the flat event stream first: building nodes recurses, and an anchor can multiply its node."""
    depth = 0
    for event in _events(text):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{source}:{line}: YAML anchors and references to them are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{source}:{line}: nested deeper than {MAX_DEPTH} levels")


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_Loader)


@dataclass
class _Builder:
    """Turns YAML nodes into plain data and notes each key's line."""

    loader: _Loader
    source: str
    lines: dict[Key, int]

    def build(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise ConfigError(f"{self.source}:{node.start_mark.line + 1}: {error}") from error

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = name_node.value
            if name_node.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"{self.source}:{line}: the key {name!r} must be text; put it in quotes")
            if name in mapping:
                raise ConfigError(f"{self.source}:{line}: the key {name!r} is given twice")
            self.lines[*key, name] = line
            mapping[name] = self.build(value_node, (*key, name))
        return mapping


class KeyedError(ValueError):
    """A problem at a key other than the one under validation."""

    def __init__(self, key: tuple[str, ...], message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    @override
    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: {self.message}"


def describe(error: ValidationError, document: Document, schema: type[BaseModel]) -> str:
    """One line for each problem: ``file:line: dotted.key: what is wrong``."""
    found = error.errors(include_url=False)
    lines = [_describe_one(problem, document, schema) for problem in found[:MAX_PROBLEMS]]
    if len(found) > MAX_PROBLEMS:
        lines.append(f"and {len(found) - MAX_PROBLEMS} more")
    return "\n".join(lines)


def _describe_one(problem: Any, document: Document, schema: type[BaseModel]) -> str:
    key, message = problem["loc"], problem["msg"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, KeyedError):
        key, message = cause.key, cause.message
    elif problem["type"] == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(_known_keys(key[:-1], schema))}"
    elif problem["type"] == "missing":
        message = "this key is required"
    elif problem["type"] == "value_error":
        message = str(cause)
    else:
        message = f"{message}, not {shown(problem['input'])}"
    # pydantic adds one more part to the path if the problem is a mapping's key and not its value.
    key = tuple(part for part in key if part != "[key]")
    return f"{document.place(key)}: {'.'.join(map(str, key))}: {message}"


def _known_keys(key: Sequence[str | int], schema: Any) -> list[str]:
    """The keys of the section that a key leads to, through sections, mappings and optional sections."""
    for part in key:
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            schema = schema.model_fields[part].annotation
            sections = [a for a in get_args(schema) if isinstance(a, type) and issubclass(a, BaseModel)]
            if get_origin(schema) is not dict and sections:
                schema = sections[0]
    return list(schema.model_fields)
