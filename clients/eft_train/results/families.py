"""The family files that serve what was trained: the expert beside its reference, and every checkpoint."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eft_client.jsonl import write_whole

__all__ = [
    "EXPERT",
    "MOST_CHECKPOINTS",
    "checkpoints_family",
    "expert_family",
    "family_name",
    "member_of",
    "write_family",
]

EXPERT, REFERENCE = "expert", "reference"
MOST_CHECKPOINTS = 32
"""As many experts as a family file may have (docs/family-file.md)."""

_HEAD = "# Written by eft train. To serve it: eft serve {path}\n"


def family_name(folder: Path) -> str:
    """A family's name for a folder: its own, in the characters that names may have."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    name = name if name[:1].isalpha() else f"trained-{name}".rstrip("-")
    return f"{name[:50]}-family" if name in (EXPERT, REFERENCE, "base") else name[:50]


def member_of(model: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """A checkpoint as a section of a family file in a folder.

    A directory that was named by an absolute path stays absolute; another is relative to the real folder.
    """
    if Path(model).is_dir():
        path = model if os.path.isabs(model) else os.path.relpath(model, folder.resolve())
        return {"model": path if path.startswith(("/", ".")) else f"./{path}"}
    return {"model": model} if revision is None else {"model": model, "revision": revision}


def expert_family(
    name: str,
    members: Mapping[str, dict[str, Any]],
    *,
    kind: str,
    is_reward_model: bool,
    description: str,
) -> dict[str, Any]:
    """The family of an expert and its reference.

    Args:
        name: The family's name.
        members: The reference under `reference`, and a larger base under `base`, if there is one.
        kind: `adapter` or `model`, as the expert is stored.
        is_reward_model: Whether the expert counts without a reference: then requests give coefficients.
        description: For people.
    """
    larger = members.get("base")
    family: dict[str, Any] = {"name": name, "description": description, "base": larger or members[REFERENCE]}
    if larger:
        family["references"] = {REFERENCE: members[REFERENCE]}
    family["experts"] = {EXPERT: {kind: "./expert", "reference": REFERENCE if larger else "base"}}
    if is_reward_model:
        # A request that asks for nothing gets the base: a reward model is no model to talk to.
        family["defaults"] = {"scale": 0.0}
        family["limits"] = {"coefficients": {"min": 0.0, "max": 2.0}}
    return family


def checkpoints_family(
    name: str, reference: dict[str, Any], checkpoints: Sequence[int], kind: str
) -> dict[str, Any]:
    """The family of all checkpoints, each an expert named by the number of examples seen before it."""
    return {
        "name": f"{name}-checkpoints",
        "description": "The checkpoints of one training; the number in a name is that of the examples seen.",
        "base": reference,
        "experts": {
            f"after-{seen:06}": {kind: f"./checkpoints/{seen:06}", "reference": "base"}
            for seen in checkpoints
        },
    }


def write_family(path: Path, family: Mapping[str, Any]) -> None:
    """Write a family file, whole or not at all."""
    body = yaml.safe_dump(dict(family), sort_keys=False, allow_unicode=True, width=110)
    write_whole(path, _HEAD.format(path=path.name) + body)
