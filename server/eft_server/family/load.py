"""From a family's name, or its file, to a ServerConfig: overrides, and paths relative to the file's folder."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from eft_server.errors import ConfigError
from eft_server.family.document import KeyedError, describe, read_document
from eft_server.family.family import BASE
from eft_server.family.file import SAME_AS, ExpertSpec, MemberSpec, ServerConfig

__all__ = ["bundled_families", "load_config"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

M = TypeVar("M", MemberSpec, ExpertSpec)


def bundled_families() -> dict[str, Path]:
    """The family files that come with the server, by name."""
    folder = Path(__file__).parent / "bundled"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(
    family: str | Path, overrides: Sequence[str] = (), *, revision: str | None = None
) -> ServerConfig:
    """Read a family by its bundled name or its file, with overrides such as ``defaults.scale=0.5`` on top.

    Paths in the file and in overrides are relative to the family file's folder.

    Args:
        family: The name or the file.
        overrides: New values for keys of the file, applied in order.
        revision: The hub revision of the base, applied last; other members are not changed.

    Raises:
        ConfigError: There is no such family, or it is wrong; the message gives file, line and dotted key.
    """
    path = _locate(family)
    document = read_document(path)
    last = [] if revision is None else [f"base.revision={json.dumps(revision)}"]
    for assignment in [*overrides, *last]:
        _spell_members_out(document.data)
        document.override(assignment)
    try:
        config = ServerConfig.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(describe(error, document, ServerConfig)) from error
    try:
        return _with_paths(config, path.resolve().parent)
    except KeyedError as problem:
        raise ConfigError(f"{document.place(problem.key)}: {problem}") from problem


def _spell_members_out(data: dict[str, Any]) -> None:
    """Turn members that are given as a bare checkpoint into sections, so that overrides can set keys inside."""
    sections = [data, *(data.get(name) for name in ("references", "experts"))]
    for section, names in zip(sections, ((BASE,), None, None), strict=True):
        if isinstance(section, dict):
            for name in names or list(section):
                if isinstance(section.get(name), str):
                    section[name] = {"model": section[name]}


def _locate(family: str | Path) -> Path:
    bundled = bundled_families()
    if isinstance(family, str) and family in bundled:
        return bundled[family]
    path = os.path.expanduser(family)
    if not os.path.isfile(path):
        shown = str(family)[:200]
        raise ConfigError(f"{shown!r} is neither a family file nor a bundled family ({', '.join(bundled)})")
    return Path(path)


def _with_paths(config: ServerConfig, folder: Path) -> ServerConfig:
    """The same config with local checkpoints and files as absolute paths."""

    def located(key: tuple[str, ...], member: M) -> M:
        given = {kind: source for kind in ("model", "adapter") if (source := getattr(member, kind, None))}
        update = {kind: _checkpoint((*key, kind), source, folder) for kind, source in given.items()}
        if member.revision is not None and any(map(os.path.isabs, update.values())):
            raise KeyedError(
                (*key, "revision"), f"{next(iter(given.values()))!r} is a directory and has no revisions"
            )
        if member.template and not _is_named_template(member.template):
            update["template"] = os.path.abspath(os.path.join(folder, os.path.expanduser(member.template)))
            if not os.path.isfile(update["template"]):
                message = f"{member.template!r} is not a file; allowed: a Jinja file, own, plain or same as <member>"
                raise KeyedError((*key, "template"), message)
        return member.model_copy(update=update)

    update: dict[str, Any] = {"base": located((BASE,), config.base)}
    update["references"] = {n: located(("references", n), m) for n, m in config.references.items()}
    update["experts"] = {n: located(("experts", n), m) for n, m in config.experts.items()}
    speculative = config.speculative
    if speculative and speculative.draft and speculative.draft not in config.family:
        draft = _checkpoint(("speculative", "draft"), speculative.draft, folder)
        update["speculative"] = speculative.model_copy(update={"draft": draft})
    if config.server.api_key_file:
        key_file = folder / config.server.api_key_file.expanduser()
        update["server"] = config.server.model_copy(update={"api_key_file": key_file})
    return config.model_copy(update=update)


def _is_named_template(template: str) -> bool:
    return template in ("own", "plain") or template.startswith(SAME_AS)


def _checkpoint(key: tuple[str, ...], model: str, folder: Path) -> str:
    local = os.path.join(folder, os.path.expanduser(model))
    if model.startswith((".", "/", "~")) or os.path.isdir(local):
        return os.path.abspath(local)
    if not _HUB_ID.fullmatch(model):
        raise KeyedError(key, f"{model!r} is neither a directory nor a hub id such as org/name")
    return model
