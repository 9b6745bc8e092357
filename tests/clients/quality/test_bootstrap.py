"""The bootstrap, against theory and against itself."""

import math

import numpy as np
import pytest

from eft_client.quality.metrics import Metric, Scores
from eft_client.quality.prompts import Prompt
from eft_client.quality.statistics.bootstrap import Bootstrap, resampled_means, wilson
from eft_client.quality.statistics.comparison import against_baseline, holm

NAN = math.nan


def scores(
    values: dict[str, list[list[float]]],
    *,
    lower: tuple[str, ...] = (),
    settings: str = "abcdef",
    shares: bool = True,
) -> Scores:
    """Scores of settings a, b, … from lists by metric; every metric is a share, or none is."""
    arrays = {name: np.array(rows, dtype=np.float64) for name, rows in values.items()}
    shape = next(iter(arrays.values())).shape
    prompts = [Prompt(id=str(i), messages=({"role": "user", "content": str(i)},)) for i in range(shape[1])]
    metrics = [
        Metric(name=name, meaning="", counts="", share=shares, higher_is_better=name not in lower)
        for name in values
    ]
    return Scores(metrics=metrics, settings=settings[: shape[0]], prompts=prompts, values=arrays)


def test_the_spread_of_resampled_means_is_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(1, 400))
    means = resampled_means(values, 4000, seed=0)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)


def test_the_resamples_are_paired_and_follow_from_the_seed() -> None:
    values = np.random.default_rng(1).normal(size=(2, 50))
    values[1] = values[0] + 3
    means = resampled_means(values, 100, seed=5)
    assert np.allclose(means[:, 1] - means[:, 0], 3)
    assert np.array_equal(means, resampled_means(values, 100, seed=5))
    assert not np.array_equal(means, resampled_means(values, 100, seed=6))


def test_many_blocks_are_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(2, 50))
    whole = resampled_means(values, 100, seed=5)
    monkeypatch.setattr("eft_client.quality.statistics.bootstrap._BLOCK_NUMBERS", 50 * 7)
    assert np.allclose(resampled_means(values, 100, seed=5), whole)


def test_what_does_not_count_is_left_out() -> None:
    assert np.nanmin(resampled_means(np.array([[2.0, 2.0, NAN]]), 50, seed=0)) == 2.0
    found = Bootstrap.of(scores({"m": [[1.0, NAN, 0.0, NAN], [NAN] * 4]}), repeats=500)
    one = found.estimate("m", "a")
    assert (one.value, one.prompts) == (0.5, 2) and one.low <= 0.5 <= one.high
    none = found.estimate("m", "b")
    assert math.isnan(none.value) and none.prompts == 0


def test_a_share_that_never_varies_has_wilson_s_interval() -> None:
    one = Bootstrap.of(scores({"m": [[1.0] * 50]}), repeats=200).estimate("m", "a")
    assert (one.low, one.high) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(3), 0
    for seed in range(300):
        found = Bootstrap.of(
            scores({"m": [(rng.random(60) < 0.7).astype(float).tolist()]}), repeats=400, seed=seed
        )
        one = found.estimate("m", "a")
        hits += one.low <= 0.7 <= one.high
    assert 0.90 <= hits / 300 <= 0.99


def test_differences_and_their_intervals_are_over_the_same_prompts() -> None:
    # Of a's prompts the baseline b lacks all but the first six, where a is worse.
    values = [[*[0.0] * 6, *[1.0] * 8], [*[1.0] * 6, *[NAN] * 8]]
    [found] = against_baseline(Bootstrap.of(scores({"m": values}), repeats=500), "b")
    assert (found.difference, found.low, found.high) == (-1.0, -1.0, -1.0)
    assert found.p == 2 / 64


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2, 0.5·1, never falling.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    adjusted = holm([0.2, NAN, 0.6])
    assert adjusted[0] == pytest.approx(0.4) and math.isnan(adjusted[1]) and adjusted[2] == 0.6


def test_wins_ties_and_losses_follow_the_metric_s_direction() -> None:
    values = [[0.0, 0.5, 1.0, 1.0, NAN], [1.0, 0.5, 0.0, 0.0, 1.0]]
    found = {
        one.metric: one
        for one in against_baseline(
            Bootstrap.of(scores({"up": values, "down": values}, lower=("down",)), repeats=200), "a"
        )
    }
    assert (found["up"].wins, found["up"].ties, found["up"].losses) == (1, 1, 2)
    assert (found["down"].wins, found["down"].ties, found["down"].losses) == (2, 1, 1)
    assert found["up"].win_rate == pytest.approx(1.5 / 4)
    # The fifth prompt has one half of a pair only.
    assert found["up"].difference == pytest.approx((1 + 0 - 1 - 1) / 4)


def test_a_clear_difference_has_a_small_p_and_an_interval_away_from_zero() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(80)
    [one] = against_baseline(
        Bootstrap.of(scores({"m": [base.tolist(), (base + 0.1).tolist()]}), repeats=1000), "a"
    )
    assert one.low == pytest.approx(0.1) and one.p < 0.01
