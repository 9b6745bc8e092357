"""What follows from a study's scores: estimates, comparisons, splits, the frontier, a choice, gaps."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eft_client.jsonl import finite_only
from eft_client.quality.metrics import Metric, Scores, find_metric
from eft_client.quality.statistics.bootstrap import Bootstrap, Estimate
from eft_client.quality.statistics.comparison import PairedDifference, against_baseline
from eft_client.quality.statistics.frontier import Constraint, Frontier, Recommendation, choose, trace
from eft_client.quality.statistics.gap import Gap, GapClosed, close_gaps
from eft_client.quality.statistics.splits import Split, generalisation_gap, tag_values
from eft_client.quality.study import Findings

__all__ = ["Questions", "Summary", "as_json", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What to report of the scores.

    Attributes:
        frontier: the two metrics to trade against each other; None draws none.
        constraint: what a setting must reach to be recommended.
        gaps: whose gap is closed how far.
        repeats: resamples of the bootstrap.
        seed: of the resamples.
    """

    frontier: tuple[str, str] | None = None
    constraint: Constraint | None = None
    gaps: Sequence[Gap] = ()
    repeats: int = 10_000
    seed: int = 0

    def check(self, metrics: Sequence[Metric], settings: Sequence[str], *, rewards: bool = False) -> None:
        """Find out before anything is asked whether everything named is there, and can be.

        Args:
            metrics: What is measured.
            settings: Their names.
            rewards: Whether experts' rewards are, too: what they are called is not known yet.

        Raises:
            StudyError: A metric or a setting is not known, or a bound cannot be reached.
        """
        names = [*(self.frontier or ()), *([self.constraint.metric] if self.constraint else [])]
        found = {
            name: find_metric(metrics, name) for name in names if not (rewards and name.startswith("reward."))
        }
        if self.constraint and self.constraint.metric in found:
            self.constraint.require_possible(found[self.constraint.metric])
        known = Scores(metrics=metrics, settings=settings, prompts=(), values={})
        for gap in self.gaps:
            for setting in (gap.emulation, gap.small, gap.tuned):
                known.row(setting)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that the table, the page and the JSON say.

    Attributes:
        findings: what was asked and found.
        estimates: by metric's name and setting's name.
        comparisons: with the baseline.
        parts: by tag's name and value, the estimates over the prompts that have it.
        splits: in and out of the fine-tuning distribution; empty where no prompt says.
        frontier: the plane of two metrics with the settings that could be served; None where it was not asked for.
        others: the other settings on the same plane, for comparison.
        choice: the recommendation under the constraint.
        gaps: what the emulation closes.
    """

    findings: Findings
    estimates: Mapping[tuple[str, str], Estimate]
    comparisons: Sequence[PairedDifference]
    parts: Mapping[tuple[str, str], Mapping[tuple[str, str], Estimate]]
    splits: Sequence[Split]
    frontier: Frontier | None = None
    others: Frontier | None = None
    choice: Recommendation | None = None
    gaps: Sequence[GapClosed] = field(default_factory=tuple)

    @property
    def measured(self) -> Sequence[Metric]:
        """The metrics that count any prompt."""
        return [
            metric
            for metric in self.findings.scores.metrics
            if any(not math.isnan(self.estimates[metric.name, name].value) for name in self.settings)
        ]

    @property
    def settings(self) -> Sequence[str]:
        """The settings' names."""
        return self.findings.scores.settings


def summarise(findings: Findings, questions: Questions) -> Summary:
    """Do the arithmetic.

    Raises:
        StudyError: A metric or a setting that a question names is not known.
    """
    bootstrap = _resampled(findings.scores, questions)
    parts = {
        (name, value): _resampled(findings.part(name, value), questions)
        for name, values in tag_values(findings.scores).items()
        for value in values
    }
    sides = [parts.get(("distribution", side)) for side in ("in", "out")]
    candidates = _candidates(findings)
    others = [name for name in findings.scores.settings if name not in candidates]
    pair = questions.frontier
    return Summary(
        findings=findings,
        estimates=_estimates(bootstrap),
        comparisons=against_baseline(bootstrap, findings.plan.baseline),
        parts={place: _estimates(part) for place, part in parts.items()},
        splits=generalisation_gap(sides[0], sides[1]) if sides[0] and sides[1] else (),
        frontier=trace(bootstrap, *pair, candidates) if pair else None,
        others=trace(bootstrap, *pair, others) if pair and others else None,
        choice=_choice(bootstrap, questions, candidates),
        gaps=[
            closed
            for gap in questions.gaps
            for closed in close_gaps(bootstrap, gap, list(findings.scores.values))
        ],
    )


def _resampled(scores: Scores, questions: Questions) -> Bootstrap:
    return Bootstrap.of(scores, repeats=questions.repeats, seed=questions.seed)


def _estimates(bootstrap: Bootstrap) -> dict[tuple[str, str], Estimate]:
    scores = bootstrap.scores
    return {
        (metric.name, setting): bootstrap.estimate(metric.name, setting)
        for metric in scores.metrics
        for setting in scores.settings
    }


def _candidates(findings: Findings) -> list[str]:
    """What could be served: the sweep's settings; without a sweep, all."""
    swept = [setting.name for setting in findings.plan.settings if setting.sweep]
    return swept or list(findings.scores.settings)


def _choice(bootstrap: Bootstrap, questions: Questions, candidates: Sequence[str]) -> Recommendation | None:
    if questions.constraint is None or questions.frontier is None:
        return None
    x, y = questions.frontier
    maximise = y if questions.constraint.metric == x else x
    return choose(bootstrap, questions.constraint, maximise, candidates)


def as_json(summary: Summary, command: str) -> str:
    """The summary for programs; what is not a number is null."""
    findings = summary.findings
    document: dict[str, Any] = {
        "command": command,
        "baseline": findings.plan.baseline,
        "prompts": len(findings.plan.prompts),
        "sampling": dataclasses.asdict(findings.plan.sampling),
        "settings": [dataclasses.asdict(setting) for setting in findings.plan.settings],
        "metrics": [dataclasses.asdict(metric) for metric in summary.measured],
        "estimates": _rows(summary.estimates),
        "comparisons": [dataclasses.asdict(one) | {"win_rate": one.win_rate} for one in summary.comparisons],
        "parts": [
            {"tag": name, "value": value, "estimates": _rows(estimates)}
            for (name, value), estimates in summary.parts.items()
        ],
        "generalisation": [dataclasses.asdict(split) for split in summary.splits],
        "frontier": summary.frontier and dataclasses.asdict(summary.frontier),
        "choice": summary.choice and dataclasses.asdict(summary.choice),
        "gaps": [dataclasses.asdict(gap) for gap in summary.gaps],
        "judges": {
            name: dataclasses.asdict(one) | {"disagreement": one.disagreement}
            for name, one in findings.agreements.items()
        },
        "notes": list(findings.notes),
    }
    return json.dumps(finite_only(document), indent=1, ensure_ascii=False) + "\n"


def _rows(estimates: Mapping[tuple[str, str], Estimate]) -> list[dict[str, Any]]:
    return [
        {"metric": metric, "setting": setting} | dataclasses.asdict(one)
        for (metric, setting), one in estimates.items()
    ]
