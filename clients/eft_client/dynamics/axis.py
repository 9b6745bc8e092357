"""What a report runs along: the checkpoints of one training, or the weight of an expert in the composite."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from eft_client.dynamics.errors import DynamicsError
from eft_client.results import Behaviours
from eft_client.settings import SettingError, sweep
from eft_client.weights import words_by_name

__all__ = ["Axis", "Step", "checkpoints_of", "examples_in", "read_checkpoints", "swept"]

_GIVEN = "EXPERT=EXAMPLES,…, like early=400,late=800"
_NUMBER_AT_THE_END = re.compile(r"\d+\Z", re.ASCII)


@dataclass(frozen=True)
class Step:
    """One point of an axis.

    Attributes:
        name: a member's name, or a setting such as helpful=0.5.
        x: examples seen, or the number swept.
        eft: the `eft` object of a request that scores this step; empty for a member.
    """

    name: str
    x: float
    eft: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """Steps in ascending order; the first is what the others are compared with.

    Attributes:
        name: in files and messages: `examples`, or what is swept.
        label: under figures.
        steps: the reference and its checkpoints; or the settings of a sweep.
        family: the family's name.
        model: the name that requests ask for.
        is_training: whether each step is a member that one request scores beside the others.
    """

    name: str
    label: str
    steps: tuple[Step, ...]
    family: str
    model: str
    is_training: bool = True

    @property
    def names(self) -> list[str]:
        """The steps' names."""
        return [step.name for step in self.steps]


def checkpoints_of(behaviours: Behaviours, given: Mapping[str, int] | None = None) -> Axis:
    """The reference and the checkpoints, in the order of the examples that they have seen.

    Args:
        behaviours: The family's.
        given: Examples seen by expert; by default the number in which its name ends, of those that have one.

    Raises:
        DynamicsError: There is no such expert, two of them have one number, or they have several references.
    """
    model = _composite(behaviours)
    numbered = _numbered(behaviours) if given is None else _known(behaviours, given)
    ordered = sorted(numbered, key=lambda name: numbered[name])
    for one, other in pairwise(ordered):
        if numbered[one] == numbered[other]:
            raise DynamicsError(f"{model}: {one!r} and {other!r} have the same number; expected one of each")
    if numbered[ordered[0]] == 0:
        raise DynamicsError(f"{model}: {ordered[0]!r}: 0 examples are the reference's; expected 1 or more")
    reference = _reference(behaviours, ordered)
    steps = (Step(reference, 0.0), *(Step(name, float(numbered[name])) for name in ordered))
    return Axis("examples", "examples seen", steps, model, f"{model}/{reference}")


def swept(text: str, behaviours: Behaviours) -> Axis:
    """The settings of `EXPERT=FROM:TO:STEP` or `scale=FROM:TO:STEP`; 0 is added where it is missing.

    Raises:
        DynamicsError: It has another form, or names no expert.
    """
    model = _composite(behaviours)
    try:
        settings = sweep(text, model=model)
    except SettingError as error:
        raise DynamicsError(f"--over {error}") from None
    names = {name for setting in settings for name in setting.sweep}
    name = names.pop() if len(names) == 1 else ""
    experts = [expert.name for expert in behaviours]
    if name not in (*experts, "scale"):
        raise DynamicsError(
            f"--over {text!r:.200}: expected one range, EXPERT=FROM:TO:STEP or scale=FROM:TO:STEP; "
            f"the experts are: {', '.join(experts)}"
        )
    steps = [Step(setting.name, setting.sweep[name], setting.eft) for setting in settings]
    if steps[0].x < 0:
        raise DynamicsError(f"--over {text!r:.200}: begins below 0; expected 0 or more")
    if steps[0].x > 0:
        eft = dict(steps[0].eft)
        zero = {"scale": 0.0} if name == "scale" else {"weights": {**eft.get("weights", {}), name: 0.0}}
        steps.insert(0, Step(f"{name}=0", 0.0, eft | zero))
    label = "scale" if name == "scale" else f"weight of {name}"
    return Axis(name, label, tuple(steps), model, model, is_training=False)


def _composite(behaviours: Behaviours) -> str:
    if behaviours.model is None:
        raise DynamicsError("the server lists no family; expected an EFT server (eft serve)")
    return behaviours.model


def read_checkpoints(text: str) -> dict[str, int]:
    """The examples seen that `early=400,late=800` says.

    Raises:
        DynamicsError: It has another form, or a number is none.
    """
    try:
        numbers = words_by_name(text, _GIVEN)
    except SettingError as error:
        raise DynamicsError(f"--checkpoints {error}") from None
    for name, number in numbers.items():
        if not number.isdecimal():
            raise DynamicsError(
                f"--checkpoints {name}={number:.40}: no number of examples; expected {_GIVEN}"
            )
    if not numbers:
        raise DynamicsError(f"--checkpoints {text!r}: names none; expected {_GIVEN}")
    return {name: int(number) for name, number in numbers.items()}


def _known(behaviours: Behaviours, given: Mapping[str, int]) -> Mapping[str, int]:
    experts = [expert.name for expert in behaviours]
    for name in given:
        if name not in experts:
            raise DynamicsError(
                f"--checkpoints {name!r:.200}: no expert; the experts are: {', '.join(experts)}"
            )
    return given


def _numbered(behaviours: Behaviours) -> dict[str, int]:
    found = {expert.name: number for expert in behaviours if (number := examples_in(expert.name)) is not None}
    if not found:
        known = ", ".join(expert.name for expert in behaviours) or "none"
        raise DynamicsError(
            f"{behaviours.model}: no expert's name ends in a number; expected checkpoints of one training, named by "
            "the examples seen, such as after-000400 (as in the checkpoints.yaml of eft train), or --checkpoints; "
            f"the experts are: {known}"
        )
    return found


def examples_in(name: str) -> int | None:
    """The number in which a checkpoint's name ends: the examples that it has seen."""
    found = _NUMBER_AT_THE_END.search(name)
    return int(found[0]) if found else None


def _reference(behaviours: Behaviours, experts: Sequence[str]) -> str:
    references = {reference for name in experts if (reference := behaviours[name].reference)}
    if len(references) != 1:
        raise DynamicsError(
            f"{behaviours.model}: the checkpoints have {len(references)} references "
            f"({', '.join(sorted(references)) or 'the server names none'}); expected one, where their training began"
        )
    return references.pop()
