"""What follows from a study's numbers, for each axis and side; and the JSON of it."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.dynamics.axis import Axis
from eft_client.dynamics.measures import Measured
from eft_client.dynamics.statistics.choice import ServedStep, accuracy_values, choose
from eft_client.dynamics.statistics.curve import Curve
from eft_client.dynamics.statistics.influence import Influence, influence
from eft_client.dynamics.statistics.squeezing import Squeezing, squeezing
from eft_client.dynamics.study import Along, DynamicsFindings
from eft_client.dynamics.texts.kinds import ARGMAX, kind_named
from eft_client.dynamics.texts.text import HELD_OUT, TRAINING
from eft_client.jsonl import finite_only
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["AxisSummary", "DynamicsSummary", "SideSummary", "as_json", "summarise"]

CurveName = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class SideSummary:
    """What the prompts of one side show along an axis.

    Attributes:
        side: training or held-out.
        prompts: how many there are.
        not_finite: numbers left out because a model gave a text no probability at all.
        levels: by kind and quantity, the mean at every step.
        changes: the same, less the first step's.
        influence: by kind, and of the argmax.
        squeezing: the four signs.
        margin: the mean implicit-reward margin at every step; none where there are no rejected answers.
        accuracy: the share of prompts whose margin is above 0; the same.
        choice: the step to serve by these prompts; None where there are no margins.
    """

    side: str
    prompts: int
    not_finite: int
    levels: Mapping[CurveName, Sequence[Estimate]]
    changes: Mapping[CurveName, Sequence[Estimate]]
    influence: Mapping[str, Influence]
    squeezing: Squeezing
    margin: Sequence[Estimate]
    accuracy: Sequence[Estimate]
    choice: ServedStep | None

    @property
    def kinds(self) -> list[str]:
        """The kinds of texts that there are, in their order."""
        return list(dict.fromkeys(kind for kind, _ in self.levels))


@dataclass(frozen=True, kw_only=True)
class AxisSummary:
    """One axis.

    Attributes:
        axis: its steps.
        sides: by name, training first.
    """

    axis: Axis
    sides: Mapping[str, SideSummary]

    @property
    def deciding(self) -> SideSummary:
        """The side that chooses: held-out where there is one, since training prompts flatter."""
        return self.sides.get(HELD_OUT) or self.sides[TRAINING]


@dataclass(frozen=True, kw_only=True)
class DynamicsSummary:
    """Everything that the table, the page and the JSON say.

    Attributes:
        findings: what was asked and found.
        axes: the checkpoints' first, if there are any.
    """

    findings: DynamicsFindings
    axes: Sequence[AxisSummary]


def summarise(findings: DynamicsFindings) -> DynamicsSummary:
    """Do the arithmetic."""
    axes = [
        AxisSummary(
            axis=along.axis,
            sides={side: _side(side, found, findings) for side, found in along.sides.items()},
        )
        for along in findings.along
    ]
    return DynamicsSummary(findings=findings, axes=axes)


def _side(side: str, found: Measured, findings: DynamicsFindings) -> SideSummary:
    options = findings.plan.options

    def curve(values_SP: NDArray[np.float64], *, share: bool = False) -> Curve:
        return Curve(values_SP, options.repeats, options.seed, share)

    curves = {place: curve(values) for place, values in found.values.items()}
    margin_SP = _margins(found)
    margin, accuracy = curve(margin_SP), curve(accuracy_values(margin_SP), share=True)
    signs = _squeezing(curves, found.kinds)
    has_margin = bool(margin.prompts)
    return SideSummary(
        side=side,
        prompts=len(found.prompts),
        not_finite=found.not_finite,
        levels={place: one.estimates for place, one in curves.items()},
        changes={place: one.changes() for place, one in curves.items()},
        influence=_influence(curves, found.kinds),
        squeezing=signs,
        margin=margin.estimates if has_margin else (),
        accuracy=accuracy.estimates if has_margin else (),
        choice=choose(
            margin if options.by == "margin" else accuracy, signs.sets_in, curves["chosen", "total"]
        ),
    )


def _influence(curves: Mapping[CurveName, Curve], kinds: Sequence[str]) -> dict[str, Influence]:
    gap = curves["chosen", "gap"]
    found = {kind: influence(curves[kind, "total"], curves[kind, "a_o"], gap) for kind in kinds}
    return found | {ARGMAX: influence(curves["chosen", "argmax"], curves["chosen", "a_o"], gap)}


def _squeezing(curves: Mapping[CurveName, Curve], kinds: Sequence[str]) -> Squeezing:
    return squeezing(
        curves["chosen", "total"],
        curves["chosen", "argmax"],
        curves["chosen", "a_o"],
        {kind: curves[kind, "total"] for kind in kinds if kind_named(kind).untaught},
    )


def _margins(found: Measured) -> NDArray[np.float64]:
    """The implicit rewards' margin, chosen less rejected, each less the first step's; NaN without rejected answers."""
    chosen = found.values["chosen", "total"]
    rejected = found.values.get(("rejected", "total"), np.full_like(chosen, math.nan))
    return np.asarray((chosen - chosen[0]) - (rejected - rejected[0]))


def as_json(summary: DynamicsSummary, command: str, words: Sequence[str]) -> str:
    """The summary for programs; what is not a number is null."""
    findings = summary.findings
    document: dict[str, Any] = {
        "command": command,
        "says": list(words),
        "prompts": {side: [pair.id for pair in found] for side, found in findings.pairs.items()},
        "vocabulary": findings.vocabulary,
        "repeats": findings.plan.options.repeats,
        "seed": findings.plan.options.seed,
        "axes": [_axis(along, one) for along, one in zip(findings.along, summary.axes, strict=True)],
    }
    return json.dumps(finite_only(document), indent=1, ensure_ascii=False) + "\n"


def _axis(along: Along, one: AxisSummary) -> dict[str, Any]:
    return {
        "name": one.axis.name,
        "label": one.axis.label,
        "family": one.axis.family,
        "model": one.axis.model,
        "steps": [dataclasses.asdict(step) for step in along.axis.steps],
        "sides": {side: _side_as_json(found) for side, found in one.sides.items()},
    }


def _side_as_json(side: SideSummary) -> dict[str, Any]:
    return {
        "prompts": side.prompts,
        "not_finite": side.not_finite,
        "curves": [
            {
                "kind": kind,
                "quantity": quantity,
                "levels": [dataclasses.asdict(one) for one in levels],
                "changes": [dataclasses.asdict(one) for one in side.changes[kind, quantity]],
            }
            for (kind, quantity), levels in side.levels.items()
        ],
        "influence": {kind: dataclasses.asdict(one) for kind, one in side.influence.items()},
        "squeezing": dataclasses.asdict(side.squeezing) | {"complete": side.squeezing.is_complete},
        "margin": [dataclasses.asdict(one) for one in side.margin],
        "accuracy": [dataclasses.asdict(one) for one in side.accuracy],
        "choice": side.choice and dataclasses.asdict(side.choice),
    }
