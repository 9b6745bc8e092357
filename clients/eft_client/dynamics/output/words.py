"""A study's results in sentences: which step to serve, and whether and since when it is squeezed."""

import math
from collections.abc import Sequence

from eft_client.dynamics.axis import Axis
from eft_client.dynamics.statistics.choice import ServedStep
from eft_client.dynamics.statistics.curve import fewest
from eft_client.dynamics.statistics.squeezing import Sign, Squeezing
from eft_client.dynamics.summary import AxisSummary, DynamicsSummary, SideSummary
from eft_client.quality.statistics.bootstrap import Estimate

__all__ = ["at", "in_words", "nats", "notes", "sentences"]

FEW_PROMPTS = 20


def sentences(summary: DynamicsSummary) -> list[str]:
    """All of it: for each axis the step to serve, the signs on each side, and what a reader has to know."""
    said = [sentence for one in summary.axes for sentence in in_words(one, summary.findings.plan.options.by)]
    return said + notes(summary)


def in_words(one: AxisSummary, by: str) -> list[str]:
    """What one axis shows: the step to serve, then each side's signs."""
    return [_choice(one, by), *(_signs(one.axis, side) for side in one.sides.values())]


def notes(summary: DynamicsSummary) -> list[str]:
    """What a reader has to know of these numbers."""
    plan, found = summary.findings.plan, list[str]()
    if len(plan.pairs) == 1:
        found.append(
            "There are no held-out prompts, so training prompts choose: they flatter. Give --held-out."
        )
    if plan.repeated:
        found.append(f"{plan.repeated:,} of the held-out file’s prompts are in the training file, too.")
    for side, pairs in plan.pairs.items():
        if len(pairs) < FEW_PROMPTS:
            found.append(
                f"{len(pairs)} {side} prompts are few: resampled intervals of so few are too narrow. Take "
                f"{FEW_PROMPTS} or more."
            )
    left = sum(side.not_finite for one in summary.axes for side in one.sides.values())
    if left:
        found.append(f"{left:,} numbers are left out: a model gave a text no probability at all.")
    return found


def at(axis: Axis, place: int) -> str:
    """A step as a sentence names it."""
    step = axis.steps[place]
    if not axis.is_training:
        return f"{'scale' if axis.name == 'scale' else 'weight'} {step.x:g}"
    counted = f"{step.x:,.0f} example{'' if step.x == 1 else 's'}"
    return f"{step.name} ({counted})" if place else f"{step.name} (the reference)"


def nats(one: Estimate, *, signed: bool = True) -> str:
    """A number of nats with its interval; without the sign, the size of a fall."""
    if math.isnan(one.value):
        return "not measured"
    if math.isnan(one.low):
        value = f"{one.value:+.2f}" if signed else f"{-one.value:.2f} nats"
        return f"{value} (no interval)".replace("-", "−")
    if not signed:
        return f"{-one.value:.2f} nats ({-one.high:.2f} to {-one.low:.2f})"
    return f"{one.value:+.2f} ({one.low:+.2f} to {one.high:+.2f})".replace("-", "−")


def _choice(one: AxisSummary, by: str) -> str:
    side, choice = one.deciding, one.deciding.choice
    if choice is None:
        return f"{_begin(one.axis)}: without rejected answers there is no margin to choose a step by."
    merit = side.margin[choice.step] if by == "margin" else side.accuracy[choice.step]
    shown = (
        f"{nats(merit)} nats"
        if by == "margin"
        else f"{merit.value:.2f} ({merit.low:.2f} to {merit.high:.2f})"
    )
    begin = (
        f"{_begin(one.axis)}: serve {at(one.axis, choice.step)}, by the {by} of {side.side} prompts, {shown}"
    )
    return f"{begin}; {_why(one, choice)}"


def _why(one: AxisSummary, choice: ServedStep) -> str:
    best, rule = at(one.axis, choice.best), _rule(one)
    squeezed = "but it is squeezed, as every later one is: " if choice.is_squeezed else ""
    if choice.among:
        few = f"{one.deciding.prompts} prompts are too few to tell whether an earlier one is as good: take "
        why = f"it has the largest mean{rule}. {few}{fewest(choice.among)} or more."
    elif choice.is_squeezed:
        why = f"{best} has the largest mean, and this is the earliest that is not surely behind it."
    elif choice.step == choice.best:
        why = f"no earlier one comes near it, and none{rule} is better."
    else:
        why = f"{best} has the largest mean{rule}, and is not surely better."
    return f"{squeezed}{why}{_loss(one, choice)}"


def _rule(one: AxisSummary) -> str:
    """What a step had to satisfy, where that left one out."""
    return " before squeezing" if one.deciding.squeezing.sets_in is not None else ""


def _loss(one: AxisSummary, choice: ServedStep) -> str:
    """The price of steps that were left out; or of this one, where every other one has it, too."""
    if choice.without_losing:
        return f" Those at which the chosen answers are less likely than at {at(one.axis, 0)} are left out."
    if not choice.loses:
        return ""
    change = one.deciding.changes["chosen", "total"][choice.step]
    return (
        f" But there the chosen answers are less likely than at {at(one.axis, 0)}, by "
        f"{nats(change, signed=False)}, and at every other step, too: try it before you serve it."
    )


def _begin(axis: Axis) -> str:
    return "Over training" if axis.is_training else f"Over the {axis.label} in {axis.family}"


def _signs(axis: Axis, side: SideSummary) -> str:
    found = side.squeezing
    begin = f"{_begin(axis)}, {side.side} prompts"
    if found.is_complete:
        return f"{begin}: squeezed. {_fall(axis, side)} {_meanwhile(found.signs[1:])}"
    holding = [sign.name for sign in found.signs if sign.holds]
    counted = (
        f"{len(holding)} of the four signs: {'; '.join(holding)}" if holding else "none of the four signs"
    )
    if found.is_unknown:
        least = fewest(len(axis.steps) - 1)
        begin = (
            f"{begin}: whether they are squeezed cannot be told from {side.prompts}; take {least} or more. "
            f"{counted[0].upper()}{counted[1:]}."
        )
    elif found.signs[0].holds:
        begin = f"{begin}: the chosen answers fall, though not by squeezing: {counted}.{_otherwise(found)}"
    else:
        begin = f"{begin}: not squeezed, {counted}."
    return f"{begin} {_fall(axis, side)} {_meanwhile(found.signs[1:])}"


def _otherwise(found: Squeezing) -> str:
    """What it is instead, where that is sure."""
    if not found.signs[2].change.high < 0:
        return ""
    return " Rows flatten: the model is driven off its own answers, too, not into them."


def _fall(axis: Axis, side: SideSummary) -> str:
    """What became of the chosen answers, and the step from which all four signs are counted."""
    found = side.squeezing
    peak, change = at(axis, found.peak), found.signs[0].change
    if change.value == 0:
        return f"The chosen answers are likeliest at the end; what follows is from {peak} on."
    if found.since is None:
        return f"The chosen answers have not surely fallen since {peak}: {nats(change)} nats."
    return (
        f"The chosen answers have fallen {nats(change, signed=False)} since {peak}, and are surely below that from "
        f"{at(axis, found.since)} on."
    )


def _meanwhile(signs: Sequence[Sign]) -> str:
    up, norm, others = (nats(sign.change) for sign in signs)
    return f"Their likeliest continuation moved {up} nats, ‖A‖ {norm}, and other texts {others} nats."
