"""Curves, influence and the choice, against values computed by hand."""

import math

import numpy as np
import pytest

from eft_client.dynamics.statistics.choice import accuracy_values, choose
from eft_client.dynamics.statistics.curve import Curve, fewest
from eft_client.dynamics.statistics.influence import influence


def curve(*rows: list[float], share: bool = False) -> Curve:
    return Curve(np.array(rows, dtype=float), repeats=2000, share=share)


def test_a_change_is_taken_within_resamples() -> None:
    far_apart = curve([0.0, 100.0, 200.0, 300.0], [1.0, 101.0, 201.0, 301.0])
    change = far_apart.change(0, 1)
    assert (change.value, change.low, change.high) == (1.0, 1.0, 1.0)
    assert far_apart.estimates[0].high - far_apart.estimates[0].low > 100


def test_an_interval_for_several_at_once_is_wider() -> None:
    gains = [1.0, -1.0, 2.0, 0.0, 3.0, 1.0, 0.5, -2.0]
    one = curve([0.0] * 16, gains + [gain + 0.1 for gain in gains])
    alone, among = one.change(0, 1), one.change(0, 1, among=10)
    assert among.low < alone.low < alone.value < alone.high < among.high


def test_too_few_prompts_for_several_at_once_have_no_interval() -> None:
    one = curve([0.0] * 8, [1.0, -1.0, 2.0, 0.0, 3.0, 1.0, 0.5, -2.0])
    among = one.change(0, 1, among=10)
    assert among.value == one.change(0, 1).value and math.isnan(among.low) and math.isnan(among.high)


@pytest.mark.parametrize("among", [2, 9, 30])
def test_few_repeats_cost_no_interval_and_the_fewest_prompts_have_one(among: int) -> None:
    rng = np.random.default_rng(among)
    for prompts, known in ((64, True), (fewest(among), True), (fewest(among) - 1, False)):
        levels = np.stack([np.zeros(prompts), 5 + rng.normal(size=prompts)])
        change = Curve(levels, repeats=100).change(0, 1, among=among)
        assert (change.low > 0) == (not math.isnan(change.high)) == known


def test_noise_is_seldom_called_a_fall() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for study in range(200):
        steps = Curve(rng.normal(0, 1, (11, 10)), repeats=2000, seed=study)
        peak = int(np.argmax(steps.means_S))
        called += peak < steps.last and steps.change(peak, steps.last, among=steps.last).high < 0
    assert called <= 10  # 2.5 % are 5; percentiles of resamples call 16.


def test_a_prompt_without_a_number_at_a_step_counts_at_none() -> None:
    one = curve([1.0, 2.0, 9.0], [3.0, 4.0, math.nan])
    assert one.prompts == 2 and one.means_S.tolist() == [1.5, 3.5]
    nobody = curve([math.nan], [1.0])
    assert nobody.prompts == 0 and math.isnan(nobody.change(0, 1).value)


def test_a_share_without_spread_has_wilson_s_interval() -> None:
    [certain] = curve([1.0] * 10, share=True).estimates
    assert certain.value == 1.0 and certain.low == pytest.approx(0.7225, abs=1e-3)


def test_influence_by_hand() -> None:
    text = curve([0.0, 0.0], [3.0, 1.0], [3.0, -3.0])
    a_o, gap = curve([16.0, 16.0], [25.0, 25.0], [36.0, 36.0]), curve([0.5, 0.5], [0.25, 0.25], [0.1, 0.1])
    moved = influence(text, a_o, gap)
    assert [one.value for one in moved.steps] == [2.0, -2.0] and moved.total.value == 0.0
    # √((3² + 1²) / 2) / √16 / 0.5, then √((0² + 4²) / 2) / √25 / 0.25: the factors before the stretch.
    expected = [math.sqrt(5) / 4 / 0.5, math.sqrt(8) / 5 / 0.25]
    assert [one.value for one in moved.normalised] == pytest.approx(expected)
    assert moved.accumulated.value == pytest.approx(sum(expected))
    assert moved.signs == [1, 0]


def test_a_text_that_is_learnt_completely_has_no_normalised_influence() -> None:
    moved = influence(
        curve([0.0, 0.0], [1.0, 1.0]), curve([4.0, 4.0], [4.0, 4.0]), curve([0.0, 0.0], [0.0, 0.0])
    )
    assert math.isnan(moved.normalised[0].value) and moved.total.value == 1.0


def margins(*means: float) -> Curve:
    rng = np.random.default_rng(0)
    return Curve(np.array(means)[:, None] + rng.normal(0, 1, (len(means), 60)), repeats=2000)


UNMOVED = margins(0, 0, 0, 0, 0)


def test_the_earliest_that_is_not_surely_worse_is_served() -> None:
    choice = choose(margins(0, 3, 6, 6.05, 6.1), None, UNMOVED)
    assert choice is not None and choice.step == 2 and choice.best in (2, 3, 4) and not choice.is_squeezed


def test_steps_from_squeezing_on_are_no_candidates() -> None:
    before = choose(margins(0, 3, 6, 9, 12), 3, UNMOVED)
    assert before is not None and (before.step, before.best, before.is_squeezed) == (2, 2, False)


def test_where_all_are_squeezed_the_choice_says_so() -> None:
    squeezed = choose(margins(0, 3, 6, 9, 12), 1, UNMOVED)
    assert squeezed is not None and (squeezed.step, squeezed.is_squeezed) == (4, True)


def test_a_margin_that_costs_the_chosen_answers_their_probability_is_no_candidate() -> None:
    kept = choose(margins(0, 3, 6, 9, 12), None, margins(0, 4, 1, -5, -20))
    assert kept is not None and (kept.step, kept.loses, kept.without_losing) == (2, False, True)


def test_where_every_step_costs_the_chosen_answers_the_choice_says_so() -> None:
    loses = choose(margins(0, 3, 6, 9, 12), None, margins(0, -4, -6, -8, -20))
    assert loses is not None and (loses.step, loses.loses, loses.without_losing) == (4, True, False)


def test_where_prompts_are_too_few_for_intervals_the_best_step_is_served_and_that_is_told() -> None:
    few = [Curve(one.values_SP[:, :6], repeats=2000) for one in (margins(0, 3, 6, 9, 12), UNMOVED)]
    choice = choose(few[0], None, few[1])
    assert choice is not None and (choice.step, choice.best, choice.among) == (4, 4, 3)
    enough = [Curve(one.values_SP[:, :7], repeats=2000) for one in (margins(0, 3, 6, 9, 12), UNMOVED)]
    choice = choose(enough[0], None, enough[1])
    assert choice is not None and (choice.step, choice.among) == (4, 0)


def test_without_margins_there_is_no_choice() -> None:
    assert choose(curve([math.nan] * 3, [math.nan] * 3), None, UNMOVED) is None


def test_accuracy_counts_ties_half() -> None:
    found = accuracy_values(np.array([[2.0, -1.0, 0.0, math.nan]]))
    assert found[0, :3].tolist() == [1.0, 0.0, 0.5] and math.isnan(found[0, 3])
