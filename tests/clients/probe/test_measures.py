"""Accuracy, AUC and τ against other implementations, and their resamples against resampling by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from eft_client.probe.statistics.measures import (
    ACCURACY,
    AUC,
    PAIR_AUC,
    TAU,
    Held,
    Measure,
    measured,
    widening,
)
from eft_client.quality.statistics.bootstrap import drawn_counts

ROWS, PROMPTS = 120, 25


def held(rng: np.random.Generator, *, classes: bool = False, folds: int = 1) -> Held:
    """Scores with ties that know something of targets."""
    scores = rng.integers(0, 15, ROWS).astype(np.float64)
    targets = scores + rng.integers(0, 20, ROWS)
    prompts = rng.permutation(np.arange(ROWS) % PROMPTS)
    return Held(
        scores_R=scores - 7 if classes else scores,
        targets_R=np.where(targets > 16, 1.0, -1.0) if classes else targets,
        prompts_R=prompts,
        folds_R=prompts % folds,
    )


def by_hand(measure: Measure, one: Held, rows: Sequence[int]) -> float:
    scores, targets = one.scores_R[rows], one.targets_R[rows]
    if measure is TAU:
        return float(kendalltau(scores, targets).statistic)
    if measure is AUC:
        return float(roc_auc_score(targets > 0, scores))
    return float(np.where(scores == 0, 0.5, np.sign(scores) == np.sign(targets)).mean())


@pytest.mark.parametrize("measure", [TAU, AUC, ACCURACY], ids=lambda measure: measure.name)
def test_values_are_those_of_other_implementations_over_all_rows_and_over_resampled_prompts(
    measure: Measure,
) -> None:
    one = held(np.random.default_rng(1), classes=measure is not TAU)
    found = measured(measure, one, PROMPTS, repeats=5, seed=3)
    assert found.value == pytest.approx(by_hand(measure, one, list(range(ROWS))), abs=1e-12)
    [counts] = drawn_counts(PROMPTS, 5, 3)
    for draw, times in zip(found.draws_D, counts, strict=True):
        assert draw == pytest.approx(resampled_by_hand(measure, one, times), abs=1e-12)


def resampled_by_hand(measure: Measure, one: Held, times: np.ndarray) -> float:
    """Row by row and pair by pair; copies of a prompt are not compared with each other."""
    copies = [(row, copy) for row in range(ROWS) for copy in range(int(times[one.prompts_R[row]]))]
    if measure is ACCURACY:
        return by_hand(measure, one, [row for row, _ in copies])
    agree = scores_differ = targets_differ = positive_first = 0.0
    for row, copy in copies:
        for other, its_copy in copies:
            if one.prompts_R[row] == one.prompts_R[other] and copy != its_copy:
                continue
            score = float(np.sign(one.scores_R[row] - one.scores_R[other]))
            target = float(np.sign(one.targets_R[row] - one.targets_R[other]))
            agree += score * target
            scores_differ += abs(score)
            targets_differ += abs(target)
            positive_first += (target > 0) * (score + 1) / 2
    if measure is TAU:
        return agree / (scores_differ * targets_differ) ** 0.5
    return positive_first / (targets_differ / 2)


def test_an_interval_of_few_different_scores_holds_its_value() -> None:
    """Two rows a prompt, and a probe that only tells the one kind from the other."""
    rng, prompts = np.random.default_rng(3), 96
    kinds = np.tile([-1.0, 1.0], prompts)
    places = np.repeat(np.arange(prompts), 2)
    one = Held(
        scores_R=kinds,
        targets_R=10 * kinds + rng.normal(size=2 * prompts),
        prompts_R=places,
        folds_R=places % 5,
    )
    found = measured(TAU, one, prompts, repeats=400, seed=0)
    low, high = np.quantile(found.draws_D, [0.025, 0.975])
    assert low <= found.value <= high


@pytest.mark.parametrize("measure", [TAU, AUC], ids=lambda measure: measure.name)
def test_scores_of_different_folds_are_never_compared(measure: Measure) -> None:
    one = held(np.random.default_rng(2), classes=measure is AUC, folds=4)
    shifted = Held(
        scores_R=one.scores_R + 1000.0 * one.folds_R,
        targets_R=one.targets_R,
        prompts_R=one.prompts_R,
        folds_R=one.folds_R,
    )
    first, second = (measured(measure, which, PROMPTS, repeats=50, seed=0) for which in (one, shifted))
    assert first.value == second.value and np.array_equal(first.draws_D, second.draws_D)


def test_the_value_of_several_folds_is_over_the_pairs_of_all_of_them() -> None:
    one = held(np.random.default_rng(2), classes=True, folds=3)
    areas, pairs = [], []
    for fold in range(3):
        rows = np.flatnonzero(one.folds_R == fold)
        positive = int((one.targets_R[rows] > 0).sum())
        areas.append(by_hand(AUC, one, list(rows)))
        pairs.append(positive * (len(rows) - positive))
    found = measured(AUC, one, PROMPTS, repeats=1, seed=0)
    assert found.value == pytest.approx(np.average(areas, weights=pairs), abs=1e-12)


def test_a_pair_counts_in_both_directions() -> None:
    rng = np.random.default_rng(4)
    scores, ones, places = rng.normal(0.4, 1, 40), np.ones(40), np.arange(40)
    one = Held(scores_R=scores, targets_R=ones, prompts_R=places, folds_R=np.zeros(40, dtype=np.int64))
    doubled = roc_auc_score(np.concatenate([ones, 0 * ones]), np.concatenate([scores, -scores]))
    assert measured(PAIR_AUC, one, 40, repeats=1, seed=0).value == pytest.approx(doubled, abs=1e-12)


def test_a_probe_that_says_the_same_of_everything_agrees_with_nothing() -> None:
    one = held(np.random.default_rng(1))
    constant = Held(
        scores_R=np.zeros(ROWS), targets_R=one.targets_R, prompts_R=one.prompts_R, folds_R=one.folds_R
    )
    assert measured(TAU, constant, PROMPTS, repeats=5, seed=0).value == 0.0
    assert measured(ACCURACY, constant, PROMPTS, repeats=5, seed=0).value == 0.5


def test_many_blocks_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    one = held(np.random.default_rng(5), folds=2)
    whole = measured(TAU, one, PROMPTS, repeats=5, seed=0)
    monkeypatch.setattr("eft_client.probe.statistics.measures._BLOCK_PAIRS", 7 * ROWS)
    assert np.allclose(measured(TAU, one, PROMPTS, repeats=5, seed=0).draws_D, whole.draws_D)


def test_two_equal_probes_differ_no_oftener_than_an_interval_of_95_percent_says() -> None:
    """A cross-validation's scores depend on each other: without the widening, 0 is missed in one study of eight."""
    rng, rows, hidden, folds = np.random.default_rng(6), 100, 24, 5
    parts, places = np.arange(rows) % folds, np.arange(rows)
    missed, narrow = 0, 0
    for _ in range(250):
        targets = rng.choice([-1.0, 1.0], rows)
        draws = [
            measured(
                ACCURACY,
                Held(
                    scores_R=_ridge(rng.normal(size=(rows, hidden)), targets, parts),
                    targets_R=targets,
                    prompts_R=places,
                    folds_R=parts,
                ),
                rows,
                repeats=200,
                seed=0,
            )
            for _ in range(2)
        ]
        value = draws[0].value - draws[1].value
        apart = draws[0].draws_D - draws[1].draws_D
        low, high = np.quantile(apart, [0.025, 0.975])
        missed += not low <= 0 <= high
        low, high = value + (np.array([low, high]) - value) / widening(folds)
        narrow += not low <= 0 <= high
    assert missed / 250 <= 0.07
    assert narrow / 250 >= 0.09


def _ridge(states: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    scores = np.empty(len(targets))
    for fold in np.unique(folds):
        train = states[folds != fold]
        weights = np.linalg.solve(
            train.T @ train + 100 * np.eye(train.shape[1]), train.T @ targets[folds != fold]
        )
        scores[folds == fold] = states[folds == fold] @ weights
    return scores
