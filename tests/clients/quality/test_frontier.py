"""Who is dominated, and what is recommended."""

import math

import numpy as np
import pytest

from eft_client.quality.errors import StudyError
from eft_client.quality.statistics.bootstrap import Bootstrap
from eft_client.quality.statistics.frontier import Constraint, choose, non_dominated, trace

from .test_bootstrap import scores


def test_dominated_means_nowhere_better_and_somewhere_worse() -> None:
    points = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.4], [0.5, 0.5], [0.0, 1.0], [math.nan, 2.0]])
    assert non_dominated(points).tolist() == [True, True, False, True, True, False]


def test_a_metric_of_which_less_is_better_is_turned_round() -> None:
    values = {"x": [[0.9] * 4, [0.8] * 4, [0.1] * 4], "y": [[0.9] * 4, [0.1] * 4, [0.5] * 4]}
    up = trace(Bootstrap.of(scores(values), repeats=100), "x", "y", "abc")
    assert [point.on_frontier for point in up.points] == [True, False, False]
    down = trace(Bootstrap.of(scores(values, lower=("y",)), repeats=100), "x", "y", "abc")
    assert [point.on_frontier for point in down.points] == [True, True, False]


def test_the_share_says_how_sure_a_place_on_the_frontier_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(100)
    noise = rng.normal(0, 1, 100) - 0.0
    values = {
        "x": [x.tolist(), (x + noise - noise.mean()).tolist(), (x - 1).tolist()],
        "y": [[0.5] * 100] * 3,
    }
    a, b, c = trace(Bootstrap.of(scores(values), repeats=1000), "x", "y", "abc").points
    assert 0.3 < a.share < 0.7 and 0.3 < b.share < 0.7 and c.share == 0.0


@pytest.mark.parametrize(
    ("text", "metric", "at_least", "bound"),
    [
        ("harmlessness>=0.95", "harmlessness", True, 0.95),
        (" false_refusals <= .1 ", "false_refusals", False, 0.1),
    ],
)
def test_a_constraint_is_read(text: str, metric: str, at_least: bool, bound: float) -> None:
    assert Constraint.parse(text) == Constraint(metric, at_least, bound)


@pytest.mark.parametrize("text", ["harmlessness", "a>0.5", "a>=", "a>=x", "a>=nan", ">=1", "a>=b>=1"])
def test_another_form_is_refused_by_name(text: str) -> None:
    with pytest.raises(StudyError, match="expected"):
        Constraint.parse(text)


def test_the_best_under_a_constraint_is_told_with_how_sure_it_is() -> None:
    # b is the best of those that reach 0.9 on average; only c does so surely.
    x = [[1.0] * 60, [0.8] * 60, [0.6] * 60]
    y = [[0.5] * 60, [1.0] * 55 + [0.0] * 5, [1.0] * 60]
    bootstrap = Bootstrap.of(scores({"x": x, "y": y}), repeats=500)
    choice = choose(bootstrap, Constraint("y", True, 0.9), "x", "abc")
    assert (choice.setting, choice.surely, choice.safe) == ("b", False, "c")
    assert choice.alike == []
    assert choose(bootstrap, Constraint("y", True, 0.4), "x", "abc").setting == "a"
    level = Bootstrap.of(scores({"x": [[0.5] * 4] * 3, "y": [[1.0] * 4] * 3}), repeats=100)
    assert choose(level, Constraint("y", True, 0.9), "x", "abc").alike == ["b", "c"]
    nothing = choose(bootstrap, Constraint("x", True, 2.0), "y", "abc")
    assert (nothing.setting, nothing.surely, nothing.safe) == (None, False, None)


def test_who_is_chosen_among_many_is_sure_no_oftener_than_it_says() -> None:
    """Every setting misses the bound by nothing: whoever is called sure is so by luck."""
    chance, wrong = np.random.default_rng(0), 0
    for seed in range(60):
        y = (chance.random((6, 40)) < 0.8).astype(float).tolist()
        bootstrap = Bootstrap.of(scores({"x": y, "y": y}), repeats=400, seed=seed)
        wrong += choose(bootstrap, Constraint("y", True, 0.8), "x", "abcdef").safe is not None
    assert wrong / 60 <= 0.06


def test_few_prompts_that_agree_do_not_make_a_chosen_setting_sure() -> None:
    chance, wrong = np.random.default_rng(0), 0
    for seed in range(200):
        y = chance.normal(0.0, 1.0, (6, 9)).tolist()
        found = scores({"x": y, "y": y}, shares=False)
        bootstrap = Bootstrap.of(found, repeats=400, seed=seed)
        wrong += choose(bootstrap, Constraint("y", True, 0.0), "x", "abcdef").safe is not None
    assert wrong / 200 <= 0.06


def test_an_unknown_metric_is_refused_by_name() -> None:
    bootstrap = Bootstrap.of(scores({"x": [[1.0]]}), repeats=100)
    with pytest.raises(StudyError, match="nothing measures 'kindness'; measured: x"):
        trace(bootstrap, "x", "kindness", "a")
