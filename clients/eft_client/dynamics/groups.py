"""Checkpoints that do not fit into memory at once: engines of some of them, one after the other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eft_client.dynamics.axis import examples_in
from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.measures import Measured
from eft_client.dynamics.options import DynamicsPlan
from eft_client.dynamics.study import Along, DynamicsFindings

__all__ = ["grouped", "joined"]


def grouped(plan: DynamicsPlan, size: int) -> list[tuple[str, ...]]:
    """The overrides of each engine: the family file with only some of its checkpoints, in their order.

    Raises:
        DynamicsError: The family is no file, or has no checkpoints.
    """
    experts = _experts(plan.options.family)
    numbers = plan.checkpoints or {
        name: number for name in experts if (number := examples_in(name)) is not None
    }
    unknown = [name for name in numbers if name not in experts]
    if unknown or not numbers:
        raise DynamicsError(
            f"--group: {plan.options.family} has no checkpoint {unknown[0] if unknown else 'at all'}; its experts are: "
            f"{', '.join(experts) or 'none'}"
        )
    ordered = sorted(numbers, key=lambda name: numbers[name])
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [_overrides({name: experts[name] for name in part}) for part in parts]


def _overrides(experts: Mapping[str, Any]) -> tuple[str, ...]:
    # What may name the experts that are left out goes, too: it has no bearing on scores of single members.
    return (
        f"experts={json.dumps(experts)}",
        "defaults={}",
        "aliases={}",
    )


def _experts(family: str | None) -> dict[str, Any]:
    path = Path(family or "").expanduser()
    if family is None or not path.is_file():
        raise DynamicsError(
            f"--group: {family!r} is no family file; a server, or a bundled family, is one engine"
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DynamicsError(f"{path}: {error}") from None
    experts = document.get("experts") if isinstance(document, dict) else None
    return {str(name): spec for name, spec in experts.items()} if isinstance(experts, dict) else {}


def joined(parts: Sequence[DynamicsFindings]) -> DynamicsFindings:
    """What several engines found of one training, as one axis; each has the reference as its first step.

    Raises:
        DynamicsError: The engines' references differ.
    """
    first = parts[0].along[0]
    steps = list(first.axis.steps)
    for before, after in pairwise(parts):
        if before.along[0].axis.steps[0] != after.along[0].axis.steps[0]:
            raise DynamicsError("--group: the checkpoints have several references; expected one")
        steps += after.along[0].axis.steps[1:]
    axis = replace(first.axis, steps=tuple(steps))
    sides = {side: _appended([part.along[0].sides[side] for part in parts]) for side in first.sides}
    return replace(parts[0], along=[Along(axis=axis, sides=sides)])


def _appended(parts: Sequence[Measured]) -> Measured:
    """The steps of all, the reference's only once."""
    values = {
        place: np.concatenate([found, *(part.values[place][1:] for part in parts[1:])])
        for place, found in parts[0].values.items()
    }
    return Measured(parts[0].prompts, values, sum(part.not_finite for part in parts))
