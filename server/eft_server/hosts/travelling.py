"""The family inside the model's config: how it reaches every process of an engine that a host starts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig

__all__ = ["FAMILY", "family_in", "overrides_of", "renamed", "written"]

FAMILY = "eft_family"
"""The key of `hf_overrides`, and the attribute of the model's config, that holds the family file's content."""

_OF_THE_HOST = ("host", "port")


def overrides_of(config: ServerConfig, planned: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's `hf_overrides` with the family, as JSON has them: lists in place of tuples.

    Args:
        config: The family.
        planned: The plan's own.
    """
    overrides: dict[str, Any] = json.loads(json.dumps({**planned, FAMILY: written(config)}))
    return overrides


def written(config: ServerConfig) -> dict[str, Any]:
    """A family as JSON; where to listen is left to the host."""
    document = config.model_dump(mode="json", exclude_unset=True)
    server = {key: value for key, value in document.pop("server", {}).items() if key not in _OF_THE_HOST}
    return document | ({"server": server} if server else {})


def family_in(document: Any) -> ServerConfig:
    """Read it back.

    Raises:
        ConfigError: It is not what `written` gave.
    """
    try:
        return ServerConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"hf_overrides.{FAMILY}: {_in_words(error)}") from error


def renamed(config: ServerConfig, names: Sequence[str]) -> ServerConfig:
    """The family under a host's names: the first replaces its name, the others become aliases of its defaults.

    Raises:
        ConfigError: A name is not possible, or taken by an alias or a member.
    """
    if not names or list(names) == [config.name]:
        return config
    first, *others = dict.fromkeys(names)
    document = config.model_dump(exclude_unset=True)
    aliases: Mapping[str, Any] = document.get("aliases", {})
    if taken := [name for name in others if name in aliases]:
        raise ConfigError(f"--served-model-name {taken[0]}: the family has an alias of this name")
    document |= {"name": first, "aliases": {**aliases, **{name: {} for name in others}}}
    try:
        return ServerConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"--served-model-name {' '.join(names)[:200]}: {_in_words(error)}") from error


def _in_words(error: ValidationError) -> str:
    return "; ".join(
        ": ".join(part for part in (".".join(map(str, problem["loc"])), problem["msg"]) if part)
        for problem in error.errors(include_url=False)
    )
