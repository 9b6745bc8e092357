"""Probes of data whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from eft_client.probe.errors import ProbeError
from eft_client.probe.statistics.folds import outer_folds
from eft_client.probe.statistics.problem import Problem, TargetKind
from eft_client.probe.study import Finding, Source, fits, probe
from eft_client.probe.summary import EXPERT, REFERENCE, SHUFFLED, TOKENS, Verdict, judged, sentence

PROMPTS, HIDDEN = 60, 6
RNG = np.random.default_rng(0)


def problem(kind: TargetKind, targets: np.ndarray, rows_of_a_prompt: int = 2) -> Problem:
    prompts = np.repeat(np.arange(len(targets) // rows_of_a_prompt), rows_of_a_prompt)
    return Problem(target="taste", kind=kind, targets_R=targets, prompts_R=prompts)


def noise(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, HIDDEN))


def verdict(one: Problem, expert: Source, reference: Source, *, shuffles: int = 5) -> Verdict:
    sources = {EXPERT: expert, REFERENCE: reference, TOKENS: Source([0], lambda _: noise(one.rows, 9))}
    steps: list[int] = []
    found = probe(one, sources, folds=4, shuffles=shuffles, seed=0, advance=steps.append)
    assert sum(steps) == fits(sources, folds=4, shuffles=shuffles)
    return judged(found, repeats=400, seed=0)


def drawn(kind: TargetKind) -> tuple[Problem, Source]:
    """Targets of a kind, and features that hold them at layer 1 of three."""
    rows = 2 * PROMPTS
    hidden = np.random.default_rng(1).normal(size=rows)
    targets = {TargetKind.NUMBER: hidden, TargetKind.CLASS: np.sign(hidden), TargetKind.PAIR: np.ones(rows)}[
        kind
    ]

    def at(layer: int) -> np.ndarray:
        states = noise(rows, 10 + layer)
        if layer == 1:
            states[:, 3] += 2 * targets
        return states

    return problem(kind, targets), Source([0, 1, 2], at)


@pytest.mark.parametrize("kind", list(TargetKind))
def test_what_only_the_expert_carries_is_found_at_its_layer_and_is_the_difference(kind: TargetKind) -> None:
    one, expert = drawn(kind)
    found = verdict(one, expert, Source([0, 2], lambda layer: noise(one.rows, 20 + layer)), shuffles=15)
    assert list(found.finding.probed[EXPERT].chosen) == [1, 1, 1, 1]
    name = found.measure.name
    for control in (REFERENCE, TOKENS):
        assert found.differences[name, control].low > 0
    assert found.estimates[name, EXPERT].value > found.measure.chance + 0.2
    assert abs(found.estimates[name, SHUFFLED].value - found.measure.chance) < 0.1
    assert found.by_layer[EXPERT, 1].value > found.by_layer[EXPERT, 0].high
    assert "more of the taste than its reference's" in sentence(found)
    assert not any("shuffled" in warning for warning in found.warnings)


@pytest.mark.parametrize("kind", list(TargetKind))
def test_what_both_carry_is_no_finding(kind: TargetKind) -> None:
    one, expert = drawn(kind)
    expert = Source([1], expert.at)
    found = verdict(one, expert, expert)
    assert found.differences[found.measure.name, REFERENCE].value == 0
    assert "neither surely more nor surely less of it than its reference's" in sentence(found)


@pytest.mark.parametrize("kind", list(TargetKind))
def test_without_a_signal_every_probe_is_at_chance(kind: TargetKind) -> None:
    one, _ = drawn(kind)
    found = verdict(
        one, Source([0], lambda _: noise(one.rows, 31)), Source([0], lambda _: noise(one.rows, 32))
    )
    for source in (EXPERT, REFERENCE, SHUFFLED):
        value = found.estimates[found.measure.name, source]
        assert value.low <= found.measure.chance <= value.high, source


def test_what_belongs_to_prompts_is_not_learnt_by_heart() -> None:
    """Targets and features of a prompt's rows are alike; nothing in them holds for another prompt."""
    rows = 4 * PROMPTS
    targets = np.repeat(np.random.default_rng(2).normal(size=PROMPTS), 4)
    states = (
        np.repeat(np.random.default_rng(3).normal(size=(PROMPTS, 50)), 4, axis=0)
        + 0.01 * noise(rows, 4)[:, :1]
    )
    source = Source([0], lambda _: states)
    found = verdict(problem(TargetKind.NUMBER, targets, 4), source, source)
    value = found.estimates["τ", EXPERT]
    assert value.low <= 0 <= value.high
    # Were each row a prompt of its own, the probe would look it up.
    leaking = verdict(problem(TargetKind.NUMBER, targets, 1), source, source)
    assert leaking.estimates["τ", EXPERT].low > 0.4


def test_no_order_of_a_pair_can_be_learnt() -> None:
    """All differences point the same way; shuffled, each the way that a coin says."""
    one = problem(TargetKind.PAIR, np.ones(2 * PROMPTS))
    offset = Source([0], lambda _: noise(one.rows, 5) + 5)
    found = verdict(one, offset, offset, shuffles=10)
    assert found.estimates["accuracy", EXPERT].value == 1.0
    shuffled = found.estimates["accuracy", SHUFFLED]
    assert shuffled.low <= 0.5 <= shuffled.high and shuffled.high < 0.65


def test_the_layer_is_chosen_without_a_look_at_the_rows_that_it_is_judged_by() -> None:
    """Of many layers of noise the best by hindsight is above chance, and the chosen ones are not."""
    one = problem(TargetKind.PAIR, np.ones(PROMPTS), 1)
    many = Source(list(range(12)), lambda layer: noise(one.rows, 100 + layer))
    found = verdict(one, many, Source([0], many.at), shuffles=3)
    hindsight = max(found.by_layer[EXPERT, layer].value for layer in many.layers)
    value = found.estimates["accuracy", EXPERT]
    assert hindsight > 0.6 and value.low <= 0.5 <= value.high


def test_all_rows_of_a_prompt_are_in_one_fold_and_in_one_inner_part() -> None:
    one, _ = drawn(TargetKind.CLASS)
    for fold in outer_folds(one, 5, 0):
        assert not set(one.prompts_R[fold.train_R]) & set(one.prompts_R[fold.test_R])
        for fitted, asked in fold.inner:
            inside = one.prompts_R[fold.train_R]
            assert not set(inside[fitted]) & set(inside[asked])


def test_shuffled_targets_that_are_not_at_chance_are_a_loud_warning() -> None:
    one, expert = drawn(TargetKind.PAIR)
    expert = Source([1], expert.at)
    found = verdict(one, expert, expert).finding
    again = Finding(problem=one, probed=found.probed, shuffled=[_true(found)] * 3)
    warnings = judged(again, repeats=100, seed=0).warnings
    assert any(warning.startswith("WARNING: shuffled targets are not at chance") for warning in warnings)


def _true(found: Finding) -> object:
    return found.probed[EXPERT]


def test_few_prompts_and_unbalanced_classes_are_said() -> None:
    targets = np.where(np.arange(48) % 6 == 0, 1.0, -1.0)
    one = problem(TargetKind.CLASS, targets, 1)
    source = Source([0], lambda _: noise(48, 6))
    sources = {EXPERT: source, REFERENCE: source, TOKENS: source}
    warnings = judged(probe(one, sources, folds=2, shuffles=3, seed=0), repeats=100, seed=0).warnings
    assert any("Only 48 prompts" in warning for warning in warnings)
    assert any("17 % of the rows have label 1" in warning and "0.83" in warning for warning in warnings)


def test_too_few_prompts_and_too_few_of_a_class_are_refused_in_words() -> None:
    one, _ = drawn(TargetKind.NUMBER)
    few = replace(one, targets_R=one.targets_R[:6], prompts_R=one.prompts_R[:6])
    with pytest.raises(ProbeError, match="3 prompts; 4 folds need at least 4"):
        outer_folds(few, 4, 0)
    rare = problem(TargetKind.CLASS, np.where(np.arange(60) == 0, 1.0, -1.0), 1)
    with pytest.raises(ProbeError, match="1 rows with label 1 and 59 with 0"):
        outer_folds(rare, 4, 0)
