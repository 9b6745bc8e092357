"""The permutation test, by hand, against scipy, and by how often it errs."""

import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from eft_client.quality import permutation
from eft_client.quality.permutation import sign_flip_p


def test_six_prompts_of_one_mind_by_hand() -> None:
    # Of 64 ways of signs, all plus and all minus are as extreme.
    assert sign_flip_p(np.full(6, 0.2), 100, 0) == 2 / 64
    assert sign_flip_p(np.array([1.0, 1, 1, 1, 1, -1]), 100, 0) == 14 / 64


def test_too_few_prompts_have_no_p_and_no_difference_has_one() -> None:
    assert math.isnan(sign_flip_p(np.full(5, 1.0), 100, 0))
    assert sign_flip_p(np.zeros(40), 100, 0) == 1.0
    assert sign_flip_p(np.array([0.0] * 20 + [1.0, -1.0]), 100, 0) == 1.0


@pytest.mark.parametrize("count", [6, 11, 14])
def test_few_prompts_give_what_scipy_gives(count: int) -> None:
    gains = np.random.default_rng(count).normal(0.4, 1.0, count)
    expected = permutation_test(
        (gains,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert sign_flip_p(gains, 100, 0) == pytest.approx(expected.pvalue)


def test_many_prompts_are_sampled_near_the_exact_p(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(4).normal(0.5, 1.0, 14)
    exact = sign_flip_p(gains, 100, 0)
    monkeypatch.setattr(permutation, "_EXACT", 5)
    assert sign_flip_p(gains, 20_000, 0) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(gains, 20_000, 0) == sign_flip_p(gains, 20_000, 0)


@pytest.mark.parametrize("count", [6, 8, 12, 30])
def test_without_a_difference_it_errs_no_oftener_than_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    studies = (rng.integers(0, 2, (2, 600, count)) / 1.0).tolist()
    found = [sign_flip_p(np.array(a) - np.array(b), 400, 0) for a, b in zip(*studies, strict=True)]
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
