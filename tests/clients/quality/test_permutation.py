"""The permutation test, by hand, against scipy, and by how often it errs."""

import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from eft_client.quality.statistics import permutation
from eft_client.quality.statistics.permutation import SignFlips


def test_six_prompts_of_one_mind_by_hand() -> None:
    # Of 64 ways of signs, all plus and all minus are as extreme.
    assert SignFlips.of(np.full(6, 0.2), 100, 0).p == 2 / 64
    assert SignFlips.of(np.array([1.0, 1, 1, 1, 1, -1]), 100, 0).p == 14 / 64


def test_too_few_prompts_have_no_p_and_no_difference_has_one() -> None:
    assert math.isnan(SignFlips.of(np.full(5, 1.0), 100, 0).p)
    assert SignFlips.of(np.zeros(40), 100, 0).p == 1.0
    assert SignFlips.of(np.array([0.0] * 20 + [1.0, -1.0]), 100, 0).p == 1.0


@pytest.mark.parametrize("count", [6, 11, 14])
def test_few_prompts_give_what_scipy_gives(count: int) -> None:
    gains = np.random.default_rng(count).normal(0.4, 1.0, count)
    expected = permutation_test(
        (gains,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert SignFlips.of(gains, 100, 0).p == pytest.approx(expected.pvalue)


def test_many_prompts_are_sampled_near_the_exact_p(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(4).normal(0.5, 1.0, 14)
    exact = SignFlips.of(gains, 100, 0).p
    monkeypatch.setattr(permutation, "_EXACT", 5)
    assert SignFlips.of(gains, 20_000, 0).p == pytest.approx(exact, abs=0.01)
    assert SignFlips.of(gains, 20_000, 0).p == SignFlips.of(gains, 20_000, 0).p


def test_the_interval_holds_what_the_test_does_not_reject() -> None:
    for seed, count in enumerate([6, 7, 9, 13] * 5):
        gains = np.random.default_rng(seed).normal(0.5, 1.0, count)
        low, high = SignFlips.of(gains, 100, 0).interval(0.95)
        assert SignFlips.of(gains - low + 1e-6, 100, 0).p <= 0.05 < SignFlips.of(gains - low - 1e-6, 100, 0).p
        assert (
            SignFlips.of(gains - high - 1e-6, 100, 0).p <= 0.05 < SignFlips.of(gains - high + 1e-6, 100, 0).p
        )


def test_six_prompts_have_the_interval_of_all_of_them_and_fewer_have_none() -> None:
    gains = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert SignFlips.of(gains, 100, 0).interval(0.95) == (1.0, 6.0)
    assert np.isnan(SignFlips.of(gains, 100, 0).interval(0.99)).all()
    assert np.isnan(SignFlips.of(gains[:5], 100, 0).interval(0.95)).all()


@pytest.mark.parametrize("count", [3, 6, 8, 12, 30])
def test_the_interval_misses_the_truth_no_oftener_than_it_says(count: int) -> None:
    rng, missed = np.random.default_rng(count), 0
    for _ in range(600):
        low, high = SignFlips.of(rng.normal(0.3, 1.0, count), 400, 0).interval(0.95)
        missed += low > 0.3 or high < 0.3
    assert missed / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize("count", [6, 8, 12, 30])
def test_without_a_difference_it_errs_no_oftener_than_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    studies = (rng.integers(0, 2, (2, 600, count)) / 1.0).tolist()
    found = [SignFlips.of(np.array(a) - np.array(b), 400, 0).p for a, b in zip(*studies, strict=True)]
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
