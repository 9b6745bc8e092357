"""What follows from held-out scores: values with intervals, differences from the controls, a sentence, and warnings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eft_client.probe.statistics.measures import Held, Measure, Resampled, measured
from eft_client.probe.statistics.problem import Problem, TargetKind
from eft_client.probe.study import Finding
from eft_client.quality.statistics.bootstrap import LEVEL, Estimate, interval, wilson

__all__ = ["EXPERT", "REFERENCE", "SHUFFLED", "TOKENS", "Verdict", "judged", "sentence"]

EXPERT, REFERENCE, TOKENS, SHUFFLED = "expert", "reference", "tokens", "shuffled"

FEW_PROMPTS = 50
FEW_OF_A_CLASS = 0.2
SURE = 0.99
"""The level at which shuffled targets are said not to be at chance: at 95 %, one sound report in twenty would be."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A finding in numbers.

    Attributes:
        finding: where they come from.
        estimates: by measure's name and source's; shuffled targets among the sources.
        differences: by measure's name and control's: the expert less that control, paired.
        by_layer: in the first measure, by source's name and layer; shuffled targets among them.
        warnings: what a reader has to know, in words.
    """

    finding: Finding
    estimates: Mapping[tuple[str, str], Estimate]
    differences: Mapping[tuple[str, str], Estimate]
    by_layer: Mapping[tuple[str, int], Estimate]
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def problem(self) -> Problem:
        """The target and its rows."""
        return self.finding.problem

    @property
    def measure(self) -> Measure:
        """The one that it is stated in."""
        return self.problem.measures[0]


def judged(finding: Finding, *, repeats: int, seed: int, notes: Sequence[str] = ()) -> Verdict:
    """Do the arithmetic.

    Args:
        finding: What probes said.
        repeats: Resamples of the prompts.
        seed: Of the resamples.
        notes: What is to be said beside our own warnings.
    """
    main, prompts = finding.problem.measures[0], finding.problem.prompts
    estimates, differences = dict[tuple[str, str], Estimate](), dict[tuple[str, str], Estimate]()
    for measure in finding.problem.measures:
        found = {
            name: measured(measure, probed.best, prompts, repeats=repeats, seed=seed)
            for name, probed in finding.probed.items()
        }
        for name, resampled in found.items():
            estimates[measure.name, name] = _estimate(measure, resampled)
            if name != EXPERT:
                differences[measure.name, name] = _difference(measure, found[EXPERT], resampled)
        values = [_value(measure, shuffled.best, prompts) for shuffled in finding.shuffled]
        estimates[measure.name, SHUFFLED] = over_shuffles(values, prompts)
    by_layer = {
        (name, layer): _estimate(main, measured(main, held, prompts, repeats=repeats, seed=seed))
        for name, probed in finding.probed.items()
        for layer, held in probed.by_layer.items()
    }
    for layer in finding.shuffled[0].by_layer:
        values = [_value(main, shuffled.by_layer[layer], prompts) for shuffled in finding.shuffled]
        by_layer[SHUFFLED, layer] = over_shuffles(values, prompts)
    return Verdict(
        finding=finding,
        estimates=estimates,
        differences=differences,
        by_layer=by_layer,
        warnings=[*_warnings(finding), *notes],
    )


def over_shuffles(values: Sequence[float], prompts: int, level: float = LEVEL) -> Estimate:
    """The mean over shuffles with Student's interval; each is a draw by itself, whatever prompts have in common."""
    from scipy.stats import t

    mean = float(np.mean(values))
    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    margin = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - margin, mean + margin, prompts)


def _value(measure: Measure, held: Held, prompts: int) -> float:
    return measured(measure, held, prompts, repeats=0, seed=0).value


def _estimate(measure: Measure, resampled: Resampled) -> Estimate:
    low, high = interval(resampled.draws_D)
    if measure.least == 0 and low == high and resampled.value in (0.0, 1.0):
        low, high = wilson(resampled.value, resampled.prompts)
    return Estimate(resampled.value, max(low, measure.least), min(high, 1.0), resampled.prompts)


def _difference(measure: Measure, first: Resampled, second: Resampled) -> Estimate:
    value = first.value - second.value
    low, high = interval(first.draws_D - second.draws_D)
    if measure.least == 0 and low == high:
        # Of two shares that are the same in every resample, each can be as far off as one that is 1 throughout.
        margin = 1 - wilson(1.0, first.prompts)[0]
        low, high = max(-1.0, value - margin), min(1.0, value + margin)
    return Estimate(value, low, high, first.prompts)


def _warnings(finding: Finding) -> Iterator[str]:
    problem, measure = finding.problem, finding.problem.measures[0]
    values = [_value(measure, shuffled.best, problem.prompts) for shuffled in finding.shuffled]
    shuffled = over_shuffles(values, problem.prompts, SURE)
    if not shuffled.low <= measure.chance <= shuffled.high:
        yield (
            f"WARNING: shuffled targets are not at chance: {measure.name} {with_margin(shuffled)}, expected "
            f"{measure.chance:g}. Either it is the one time in a hundred, which more --shuffles tell, or probes were "
            "judged by rows that they were fitted on. Do not rely on the other numbers before you know."
        )
    if problem.prompts < FEW_PROMPTS:
        yield f"Only {problem.prompts} prompts: the intervals are wide, and rougher than they look."
    if problem.kind is TargetKind.CLASS:
        positive = float((problem.targets_R > 0).mean())
        if min(positive, 1 - positive) < FEW_OF_A_CLASS:
            yield (
                f"Unbalanced: {100 * positive:.0f} % of the rows have label 1. Always saying the commoner one has an "
                f"accuracy of {max(positive, 1 - positive):.2f}; look at the AUC."
            )


def with_margin(one: Estimate) -> str:
    """A value and half of its interval."""
    return f"{one.value:.2f} ± {(one.high - one.low) / 2:.2f}"


def sentence(verdict: Verdict) -> str:
    """The finding in words."""
    name = verdict.measure.name
    known = [
        source for source in (EXPERT, REFERENCE, TOKENS, SHUFFLED) if (name, source) in verdict.estimates
    ]
    values = ", ".join(f"{source} {with_margin(verdict.estimates[name, source])}" for source in known)
    target = verdict.problem.target
    said = [_compared(verdict.differences[name, REFERENCE], target, "its reference's")]
    said += [_compared(verdict.differences[name, TOKENS], target, "a bag of tokens")]
    return f"{target} ({name}): {values}. The expert's activations {'; they '.join(said)}."


def _compared(difference: Estimate, target: str, control: str) -> str:
    by = f"{abs(difference.value):.2f}"
    spread = f"{difference.low:+.2f} to {difference.high:+.2f}"
    if math.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return f"carry neither surely more nor surely less of it than {control} ({difference.value:+.2f}, {spread})"
    more = "more" if difference.value > 0 else "less"
    return f"carry {by} {more} of the {target} than {control} ({spread})"
