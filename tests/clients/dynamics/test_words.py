"""Sentences say which checkpoint to serve, and since when and by how much training squeezes, or that it does not."""

import numpy as np
import pytest

from eft_client.dynamics.axis import Axis, Step
from eft_client.dynamics.output.words import in_words, nats
from eft_client.dynamics.statistics.choice import choose
from eft_client.dynamics.statistics.curve import Curve
from eft_client.dynamics.statistics.squeezing import squeezing
from eft_client.dynamics.summary import AxisSummary, SideSummary
from eft_client.quality.statistics.bootstrap import Estimate

STEPS = (Step("base", 0), Step("after-000400", 400), Step("after-000800", 800), Step("after-001200", 1200))
FALLS, RISES = [-50.0, -45.0, -48.0, -52.0], [-20.0, -18.0, -15.0, -10.0]
MARGIN = [0.0, 5.0, 9.0, 12.0]


def summarised(axis: Axis, chosen: list[float], argmax: list[float], prompts: int = 30) -> AxisSummary:
    shaken = np.random.default_rng(0).normal(0, 0.1, (3, 4, prompts))
    curves = [
        Curve(np.array(levels)[:, None] + shaken[i], 500) for i, levels in enumerate((chosen, argmax, MARGIN))
    ]
    margin = curves[2]
    signs = squeezing(curves[0], curves[1], curves[1], {"random": curves[0]})
    side = SideSummary(
        side="held-out",
        prompts=prompts,
        not_finite=0,
        levels={},
        changes={("chosen", "total"): curves[0].changes()},
        influence={},
        squeezing=signs,
        margin=margin.estimates,
        accuracy=margin.estimates,
        choice=choose(margin, signs.sets_in, curves[0]),
    )
    return AxisSummary(axis=axis, sides={"training": side, "held-out": side})


TRAINING = Axis("examples", "examples seen", STEPS, "mine", "mine/base")


def test_the_checkpoint_before_squeezing_is_served_and_the_fall_is_told() -> None:
    choice, _, held_out = in_words(summarised(TRAINING, FALLS, RISES), "margin")
    assert choice.startswith(
        "Over training: serve after-000400 (400 examples), by the margin of held-out prompts, +"
    )
    assert "none before squeezing is better" in choice
    assert "squeezed. The chosen answers have fallen 7.0" in held_out
    assert (
        "since after-000400 (400 examples), and are surely below that from after-000800 (800 examples) on"
        in held_out
    )


def test_a_training_that_only_raises_the_chosen_answers_is_not_squeezed() -> None:
    choice, _, held_out = in_words(summarised(TRAINING, [-50, -45, -40, -35], RISES), "margin")
    assert "serve after-001200 (1,200 examples)" in choice and "before squeezing" not in choice
    assert "not squeezed, 2 of the four signs: its likeliest continuation rises; rows grow peaky" in held_out


def test_a_fall_without_the_other_signs_is_told_and_excludes_no_checkpoint() -> None:
    choice, _, held_out = in_words(summarised(TRAINING, [-50, -45, -48, -49], RISES[::-1]), "margin")
    assert "serve after-001200" in choice
    assert "the chosen answers fall, though not by squeezing: 2 of the four signs" in held_out
    assert "Rows flatten: the model is driven off its own answers" in held_out
    assert "The chosen answers have fallen 4.0" in held_out


def test_a_step_at_which_the_chosen_answers_lost_is_passed_over() -> None:
    choice, _, _ = in_words(summarised(TRAINING, [-50, -45, -55, -60], RISES[::-1]), "margin")
    assert "serve after-000400 (400 examples)" in choice
    assert (
        "Those at which the chosen answers are less likely than at base (the reference) are left out."
        in choice
    )


def test_where_every_step_loses_the_price_is_told() -> None:
    choice, _, _ = in_words(summarised(TRAINING, [-50, -55, -60, -65], RISES[::-1]), "margin")
    assert "serve after-001200 (1,200 examples)" in choice
    assert "chosen answers are less likely than at base (the reference), by 14.99 nats" in choice


def test_too_few_prompts_are_told_instead_of_a_verdict() -> None:
    choice, _, held_out = in_words(summarised(TRAINING, FALLS, RISES, prompts=6), "margin")
    assert (
        "it has the largest mean. 6 prompts are too few to tell whether an earlier one is as good" in choice
    )
    assert "whether they are squeezed cannot be told from 6; take 7 or more. 3 of the four signs" in held_out
    assert "not squeezed" not in held_out


def test_signs_are_counted_from_one_step_all() -> None:
    _, _, unsure = in_words(summarised(TRAINING, [-50, -45, -45.01, -45.02], [-20, -10, -11, -12]), "margin")
    assert "have not surely fallen since after-000400 (400 examples): −0.0" in unsure
    assert "Their likeliest continuation moved −2.0" in unsure
    _, _, rising = in_words(summarised(TRAINING, [-50, -45, -40, -35], RISES), "margin")
    assert "likeliest at the end; what follows is from base (the reference) on." in rising
    assert "Their likeliest continuation moved +9.98" in rising


def test_weights_are_named_as_weights() -> None:
    steps = tuple(Step(f"polite={x}", x) for x in (0.0, 0.5, 1.0, 1.5))
    axis = Axis("polite", "weight of polite", steps, "mine", "mine", is_training=False)
    choice, _, held_out = in_words(summarised(axis, FALLS, RISES), "margin")
    assert choice.startswith("Over the weight of polite in mine: serve weight 0.5, by")
    assert "since weight 0.5, and are surely below that from weight 1 on" in held_out


@pytest.mark.parametrize(
    ("signed", "said"), [(True, "−4.10 (−5.20 to −3.00)"), (False, "4.10 nats (3.00 to 5.20)")]
)
def test_numbers_have_their_interval(signed: bool, said: str) -> None:
    assert nats(Estimate(-4.1, -5.2, -3.0, 9), signed=signed) == said
