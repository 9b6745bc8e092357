"""A study from its plan to its numbers: write the texts, score them along every axis, and arrange what came back."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from eft_client.dynamics.axis import Axis, Step, checkpoints_of, swept
from eft_client.dynamics.errors import DynamicsError
from eft_client.dynamics.measures import Measured, measured
from eft_client.dynamics.options import DynamicsPlan
from eft_client.dynamics.resume import require_same_study, require_same_weights
from eft_client.dynamics.scores import Scorer
from eft_client.dynamics.texts.generated import Writer, initial_answers, rephrased
from eft_client.dynamics.texts.given import disordered, natural, seeded
from eft_client.dynamics.texts.text import Place, Text, places
from eft_client.pairs.pair import Pair
from eft_client.progress import Progress
from eft_client.quality.journal import Journal
from eft_client.results import Behaviours, behaviours_in
from eft_client.sync import EftClient

__all__ = ["Along", "DynamicsFindings", "axes_of", "conduct", "size_in_words"]

Pairs = Mapping[str, Sequence[Pair]]
Texts = Mapping[Place, Sequence[Text]]

REPHRASED_AT = 0.5
"""The temperature of rephrases: greedy ones repeat the text, those at 1 wander off."""

_CHARS_A_TOKEN = 4
_DISORDERED = 2


@dataclass(frozen=True, kw_only=True)
class Along:
    """What was measured along one axis.

    Attributes:
        axis: its steps.
        sides: the numbers of training and of held-out prompts.
    """

    axis: Axis
    sides: Mapping[str, Measured]


@dataclass(frozen=True, kw_only=True)
class DynamicsFindings:
    """What a study found.

    Attributes:
        plan: what was asked.
        pairs: the prompts by side, with their rephrases.
        texts: every text by side and place.
        vocabulary: over how many tokens the rows are distributions.
        along: one for the checkpoints, if there are any, and one for each sweep.
    """

    plan: DynamicsPlan
    pairs: Pairs
    texts: Texts
    vocabulary: int
    along: Sequence[Along]


def conduct(plan: DynamicsPlan, client: EftClient, journal: Journal, watcher: Progress) -> DynamicsFindings:
    """Write and score what the journal lacks.

    Raises:
        DynamicsError: The study cannot continue, or the journal is another study's.
        EftError: The server does not answer.
    """
    behaviours = _behaviours(client, plan.options.model)
    axes = axes_of(plan, behaviours)
    vocabulary = _vocabulary(behaviours)
    require_same_study(journal, plan, axes[0].family)
    study = _Study(plan, client, journal, watcher)
    pairs = study.rephrased(f"{axes[0].family}/base")
    texts = study.natural(pairs, f"{axes[0].family}/{_reference(axes, behaviours)}")
    scorers = [Scorer(client=client, journal=journal, axis=axis) for axis in axes]
    require_same_weights(scorers[0], pairs, texts)
    watcher.say(size_in_words(axes, pairs, texts))
    texts = study.with_disordered(pairs, texts, study.tokens(scorers[0], pairs, texts))
    for scorer in scorers:
        study.score(scorer, pairs, texts, scorer.requests, "all texts")
    along = [Along(axis=scorer.axis, sides=_measured(scorer, pairs, texts, vocabulary)) for scorer in scorers]
    return DynamicsFindings(plan=plan, pairs=pairs, texts=texts, vocabulary=vocabulary, along=along)


def _behaviours(client: EftClient, model: str | None) -> Behaviours:
    """The family's, of a server that may list several."""
    cards = client.models()
    families = [card for card in cards if card.kind == "composite"]
    if model is None:
        return behaviours_in(cards)
    if model not in {card.id for card in families}:
        known = ", ".join(card.id for card in families) or "none"
        raise DynamicsError(f"--model {model!r:.200}: no family of the server; known: {known}")
    return behaviours_in([card for card in families if card.id == model])


def axes_of(plan: DynamicsPlan, behaviours: Behaviours) -> list[Axis]:
    """The checkpoints, and the sweeps asked for; sweeps can do without checkpoints.

    Raises:
        DynamicsError: There is neither, or a sweep names no expert.
    """
    try:
        axes = [checkpoints_of(behaviours, _given(plan, behaviours))]
    except DynamicsError:
        if plan.checkpoints is not None or not plan.options.over:
            raise
        axes = []
    return axes + [swept(text, behaviours) for text in plan.options.over]


def _given(plan: DynamicsPlan, behaviours: Behaviours) -> Mapping[str, int] | None:
    """The checkpoints that were given; of those, where there are groups, the ones that this engine has."""
    if plan.checkpoints is None or plan.options.group is None:
        return plan.checkpoints
    experts = {expert.name for expert in behaviours}
    return {name: number for name, number in plan.checkpoints.items() if name in experts}


def size_in_words(axes: Sequence[Axis], pairs: Pairs, texts: Texts) -> str:
    """What scoring costs, before it starts."""
    answers = sum(len(found) + _DISORDERED for found in texts.values())
    characters = sum(_characters(texts[side, index], pairs[side][index]) for side, index in texts)
    models = sum(len(axis.steps) for axis in axes)
    asked = " and ".join(f"{len(found)} {side}" for side, found in pairs.items())
    tokens = math.ceil(characters / _CHARS_A_TOKEN) * models
    return (
        f"{asked} prompts with {answers:,} texts, each under {models} checkpoints or settings: about {tokens:,} tokens "
        "to read, if prompts are read once for all of their texts"
    )


def _vocabulary(behaviours: Behaviours) -> int:
    if behaviours.vocabulary is None:
        raise DynamicsError(
            f"{behaviours.model}: the server names no vocabulary; expected an EFT server of this version"
        )
    return behaviours.vocabulary


def _characters(texts: Sequence[Text], pair: Pair) -> int:
    """Of a prompt and its texts; those in disorder, which are not made yet, are as long as the chosen one."""
    prompt = len(pair.prompt) if isinstance(pair.prompt, str) else sum(len(str(m)) for m in pair.prompt)
    return prompt + sum(text.size_bytes for text in texts) + _DISORDERED * len(pair.chosen)


def _reference(axes: Sequence[Axis], behaviours: Behaviours) -> str:
    """The member whose own answers are followed: where training began, or the swept expert's reference."""
    if axes[0].is_training:
        return axes[0].steps[0].name
    experts = {expert.name: expert for expert in behaviours}
    return experts.get(axes[0].name, behaviours.experts[0]).reference or "base"


def _measured(scorer: Scorer, pairs: Pairs, texts: Texts, vocabulary: int) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for side, ours in pairs.items():
        sums = {
            (pair.id, text.kind): scorer.sums(pair, text)
            for index, pair in enumerate(ours)
            for text in texts[side, index]
        }
        found[side] = measured([pair.id for pair in ours], scorer.axis.names, sums, vocabulary)
    return found


@dataclass(frozen=True)
class _Study:
    """The steps of a study that ask the server."""

    plan: DynamicsPlan
    client: EftClient
    journal: Journal
    watcher: Progress

    def rephrased(self, model: str) -> Pairs:
        """The pairs, with rephrases where they were asked for."""
        if not self.plan.options.rephrase:
            return self.plan.pairs
        step = self.watcher.begin("rephrases", sum(map(len, self.plan.pairs.values())))
        return rephrased(self._writer(model, REPHRASED_AT), self.plan.pairs, step)

    def natural(self, pairs: Pairs, reference: str) -> Texts:
        """Every prompt's texts but those in disorder, whose tokens are not known yet."""
        options = self.plan.options
        step = self.watcher.begin("the reference's own answers", sum(map(len, pairs.values())))
        writer = self._writer(reference, options.temperature)
        initial = initial_answers(writer, pairs, step, end=options.end)
        return {
            (side, index): [
                *natural(pairs, side, index, seed=options.seed, end=options.end),
                *([initial[side, index]] if (side, index) in initial else []),
            ]
            for side, index in places(pairs)
        }

    def with_disordered(self, pairs: Pairs, texts: Texts, tokens: Mapping[Place, Sequence[int]]) -> Texts:
        """The texts, and those of the chosen answer's tokens in disorder."""
        options = self.plan.options
        own = {place: ids[:-1] if texts[place][0].end else ids for place, ids in tokens.items()}
        pool = sorted({token for ids in own.values() for token in ids})
        more: dict[Place, Sequence[Text]] = {}
        for side, index in texts:
            rng = seeded(options.seed, "disorder", pairs[side][index].id)
            disorder = disordered(own[side, index], pool, rng, end=options.end)
            more[side, index] = [*texts[side, index], *disorder]
        return more

    def tokens(self, scorer: Scorer, pairs: Pairs, texts: Texts) -> dict[Place, list[int]]:
        """The chosen answers' tokens by place: the server's, told when they are scored for the first time."""
        return self.score(scorer, pairs, texts, scorer.requests[:1], "answers")

    def score(
        self, scorer: Scorer, pairs: Pairs, texts: Texts, requests: Sequence[Step | None], what: str
    ) -> dict[Place, list[int]]:
        """Score the texts under some of the axis's requests; the chosen answers' tokens by place."""
        jobs = [(place, under) for place in places(pairs) for under in requests]
        step = self.watcher.begin(f"scores along {scorer.axis.label}, {what}", len(jobs))
        tokens = dict[Place, list[int]]()

        def work(job: tuple[Place, Step | None]) -> None:
            (side, index), under = job
            tokens[side, index] = scorer.score(side, pairs[side][index], texts[side, index], under)
            step()

        with ThreadPoolExecutor(self.plan.options.concurrency) as pool:
            try:
                list(pool.map(work, jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return tokens

    def _writer(self, model: str, temperature: float) -> Writer:
        options = self.plan.options
        return Writer(
            client=self.client,
            journal=self.journal,
            model=model,
            max_tokens=options.max_tokens,
            temperature=temperature,
            seed=options.seed,
            at_once=options.concurrency,
        )
