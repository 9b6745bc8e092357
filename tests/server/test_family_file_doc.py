"""docs/family-file.md names every key of the family file, with the bounds and defaults that it has."""

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eft_server.family.file import (
    ExpertSpec,
    Filter,
    Limits,
    MemberSpec,
    Range,
    ServerConfig,
    ServerOptions,
    Setting,
    Speculative,
)

PAGE = (Path(__file__).parents[2] / "docs" / "family-file.md").read_text()
DEFAULTS = type(ServerConfig.model_fields["defaults"].default)
SECTIONS = {
    "Top level": (ServerConfig,),
    "Members": (MemberSpec, ExpertSpec),
    "Defaults and aliases": (DEFAULTS, Setting, Filter),
    "Limits": (Limits, Range),
    "Speculative": (Speculative,),
    "Server": (ServerOptions,),
}
FIELDS = [
    pytest.param(heading, name, field, id=f"{model.__name__}.{name}")
    for heading, models in SECTIONS.items()
    for model in models
    for name, field in model.model_fields.items()
]


def rows(heading: str) -> dict[str, str]:
    """The rows of a section's tables by the last part of the key in their first column."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(?:\w+\.)?(\w+)` \|(.*)$", section, re.MULTILINE)
    assert len(found) == len(dict(found)), f"a key of {heading} is there twice"
    return dict(found)


def models_in(kind: Any) -> set[type[BaseModel]]:
    """The sections that a field's type holds, with those inside them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inside = (field.annotation for field in kind.model_fields.values())
        return {kind}.union(*map(models_in, inside))
    known = get_origin(kind) in (Annotated, Union, UnionType, dict)
    return set().union(*map(models_in, get_args(kind))) if known else set()


def bounds(field: FieldInfo) -> set[float]:
    """Every number that the type or its parts state as a bound."""

    def of(metadata: Any) -> set[float]:
        names = ("ge", "gt", "le", "lt", "max_length")
        return {value for name in names if (value := getattr(metadata, name, None)) is not None}

    def inside(kind: Any) -> set[float]:
        own = set().union(*map(of, getattr(kind, "__metadata__", ())))
        return own.union(*map(inside, get_args(kind)))

    return set().union(*map(of, field.metadata), inside(field.annotation))


def test_every_section_of_the_family_file_has_a_heading() -> None:
    assert models_in(ServerConfig) == {model for models in SECTIONS.values() for model in models}


@pytest.mark.parametrize(("heading", "name", "field"), FIELDS)
def test_every_key_has_a_row_with_its_bounds_and_its_default(
    heading: str, name: str, field: FieldInfo
) -> None:
    row = rows(heading)[name].replace("−", "-").replace(",", "")
    numbers = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", row)}
    missing = bounds(field) - numbers
    assert not missing, f"{name} does not state {missing}"
    default = field.default
    if isinstance(default, bool):
        assert str(default).lower() in row
    elif isinstance(default, int | float):
        assert default in numbers, f"{name} does not state its default {default}"


@pytest.mark.parametrize("heading", SECTIONS)
def test_no_row_names_a_key_that_does_not_exist(heading: str) -> None:
    known = {name for model in SECTIONS[heading] for name in model.model_fields}
    assert rows(heading).keys() == known
