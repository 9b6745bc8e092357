"""A study from its plan to its scores: ask, judge, measure; every answer and judgement is kept in its folder."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.answers import Answers
from eft_client.quality.diversity.measures import (
    DiversityMeasure,
    measure_across,
    measure_diversity,
    metrics_of,
)
from eft_client.quality.errors import StudyError
from eft_client.quality.generations import Sampling, collect, requests_of
from eft_client.quality.journal import Journal
from eft_client.quality.judges.judge import AnswerJudge
from eft_client.quality.judges.pairwise import Agreement, PairwiseJudge
from eft_client.quality.judges.reward import RewardJudge
from eft_client.quality.metrics import Metric, Scores
from eft_client.quality.prompts import Prompt
from eft_client.quality.servers import Servers
from eft_client.settings import Setting

__all__ = ["Findings", "Plan", "StageWatcher", "conduct"]


class StageWatcher(Protocol):
    """Follows the progress of a study."""

    def begin(self, stage: str, steps: int) -> Callable[[int], object]:
        """A stage of `steps` steps begins; what is returned is called with the number of further steps done."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study asks and measures.

    Attributes:
        settings: those to compare; their names are unique.
        prompts: those to ask.
        sampling: how answers are drawn.
        baseline: the setting that the others are compared with.
        judges: of single answers, for nothing.
        pairwise: models that compare answers with the baseline's.
        reward: the server that knows the implicit reward.
        diversity: measures of sets of answers.
        folder: where everything goes.
        concurrency: requests under way at once.

    Raises:
        StudyError: Names are not unique, or the baseline is none of them.
    """

    settings: Sequence[Setting]
    prompts: Sequence[Prompt]
    sampling: Sampling
    baseline: str
    judges: Sequence[AnswerJudge]
    folder: Path
    pairwise: Sequence[PairwiseJudge] = ()
    reward: RewardJudge | None = None
    diversity: Sequence[DiversityMeasure] = ()
    concurrency: int = 8

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        if twice := [name for name in names if names.count(name) > 1]:
            raise StudyError(f"two settings are called {twice[0]!r}; give one of them another name")
        if self.baseline not in names:
            raise StudyError(f"no setting is called {self.baseline!r}; known: {', '.join(names)}")
        if not 1 <= self.concurrency <= 1024:
            raise StudyError(f"concurrency is {self.concurrency}; expected 1 to 1024")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study found.

    Attributes:
        plan: what was asked and how, with every setting's model named.
        answers: all of them.
        scores: every metric of every setting and prompt.
        agreements: by metric's name, how the two orders of a pairwise judge went together.
        notes: what a reader has to know of these scores.
    """

    plan: Plan
    answers: Answers
    scores: Scores
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def part(self, name: str, value: str) -> Scores:
        """The scores over the prompts with a tag; diversity across inputs is measured anew on those."""
        counted = [prompt.tags.get(name) == value for prompt in self.scores.prompts]
        values = {key: np.where(counted, found, np.nan) for key, found in self.scores.values.items()}
        prompts = [prompt for prompt, counts in zip(self.scores.prompts, counted, strict=True) if counts]
        for measure in self.plan.diversity:
            found = np.full((len(self.scores.settings), len(counted)), np.nan)
            found[:, counted] = measure_across(measure, self.answers, self.scores.settings, prompts)
            values[metrics_of(measure)[1].name] = found
        return Scores(
            metrics=self.scores.metrics,
            settings=self.scores.settings,
            prompts=self.scores.prompts,
            values=values,
        )


async def conduct(plan: Plan, servers: Servers, watcher: StageWatcher) -> Findings:
    """Ask what is not known yet, judge, measure, and write `verdicts.jsonl`.

    Raises:
        StudyError: The study cannot continue; run again, it resumes where it stopped.
        EftError: A server does not answer at all.
    """
    settings = await servers.named(plan.settings)
    requests = list(requests_of(settings, plan.prompts, plan.sampling))
    with Journal(plan.folder / "generations.jsonl") as journal:
        step = watcher.begin("answers", len({request.key for request in requests}))
        answers = await collect(
            requests, journal, servers, concurrency=plan.concurrency, advance=lambda: step(1)
        )
    tables = _Tables([setting.name for setting in settings], plan.prompts)
    _judge_answers(plan, tables, answers)
    with Journal(plan.folder / "judgements.jsonl") as journal:
        agreements, notes = await _paid(plan, tables, answers, servers, journal, watcher)
    for measure in plan.diversity:
        names = [setting.name for setting in settings]
        found = measure_diversity(measure, answers, names, plan.prompts, partial(watcher.begin, measure.name))
        tables.add(metrics_of(measure), found)
    return Findings(
        plan=replace(plan, settings=settings),
        answers=answers,
        scores=tables.scores(),
        agreements=agreements,
        notes=notes,
    )


async def _paid(  # noqa: PLR0913 (what is judged, and where it is kept)
    plan: Plan, tables: "_Tables", answers: Answers, servers: Servers, journal: Journal, watcher: StageWatcher
) -> tuple[dict[str, Agreement], list[str]]:
    """The judges that ask somebody."""
    agreements, notes = dict[str, Agreement](), list[str]()
    common: dict[str, Any] = dict(journal=journal, servers=servers, concurrency=plan.concurrency)
    for judge in plan.pairwise:
        [endpoint] = await servers.named([judge.endpoint])
        named = replace(judge, endpoint=endpoint)
        begin = _single_steps(watcher, named.metric.name)
        found = await named.judge(answers, plan.prompts, baseline=plan.baseline, begin=begin, **common)
        tables.add([named.metric], {named.metric.name: tables.array(found.values)})
        agreements[named.metric.name] = found.agreement
    if plan.reward is not None:
        [endpoint] = await servers.named([plan.reward.endpoint])
        rewards = await replace(plan.reward, endpoint=endpoint).judge(
            answers, plan.prompts, begin=_single_steps(watcher, "reward"), **common
        )
        tables.add(rewards.metrics, {name: tables.array(found) for name, found in rewards.values.items()})
        if rewards.not_finite:
            notes.append(f"{rewards.not_finite:,} implicit rewards were not finite and are left out.")
    return agreements, notes


def _single_steps(watcher: StageWatcher, stage: str) -> Callable[[int], Callable[[], object]]:
    def begin(steps: int) -> Callable[[], object]:
        step = watcher.begin(stage, steps)
        return lambda: step(1)

    return begin


class _Tables:
    """Scores as they come together."""

    def __init__(self, settings: Sequence[str], prompts: Sequence[Prompt]) -> None:
        self._settings = settings
        self._prompts = prompts
        self._metrics: list[Metric] = []
        self._values: dict[str, NDArray[np.float64]] = {}

    def add(self, metrics: Sequence[Metric], values: Mapping[str, NDArray[np.float64]]) -> None:
        for metric in metrics:
            if metric.name in self._values:
                raise StudyError(f"two judges measure {metric.name!r}; leave one of them out")
            self._metrics.append(metric)
            self._values[metric.name] = values[metric.name]

    def array(self, values: Mapping[tuple[str, str], float]) -> NDArray[np.float64]:
        rows = [[values.get((name, p.id), np.nan) for p in self._prompts] for name in self._settings]
        return np.array(rows, dtype=np.float64)

    def scores(self) -> Scores:
        return Scores(
            metrics=self._metrics, settings=self._settings, prompts=self._prompts, values=self._values
        )


def _judge_answers(plan: Plan, tables: _Tables, answers: Answers) -> None:
    """Judge every single answer, and write what was found, a line each."""
    metrics = [metric for judge in plan.judges for metric in judge.metrics]
    found: dict[str, dict[tuple[str, str], list[float]]] = {metric.name: {} for metric in metrics}
    path = plan.folder / "verdicts.jsonl"
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8", errors="replace") as file:
        for place, sample, verdict in _verdicts(plan, answers):
            line = {"setting": place[0], "prompt": place[1], "sample": sample, **verdict}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            for name, value in verdict.items():
                found[name].setdefault(place, []).append(value)
    os.replace(unfinished, path)
    means = {
        name: {place: sum(values) / len(values) for place, values in places.items()}
        for name, places in found.items()
    }
    tables.add(metrics, {name: tables.array(places) for name, places in means.items()})


def _verdicts(plan: Plan, answers: Answers) -> Iterator[tuple[tuple[str, str], int, dict[str, float]]]:
    prompts = {prompt.id: prompt for prompt in plan.prompts}
    for place, samples in answers.items():
        for sample, answer in enumerate(samples):
            verdict: dict[str, float] = {}
            for judge in plan.judges:
                verdict |= judge.judge(prompts[place[1]], answer)
            yield place, sample, verdict
