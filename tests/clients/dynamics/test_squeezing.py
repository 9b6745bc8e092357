"""The signature of squeezing on made-up curves: all four signs, each missing one by name, and since when."""

import numpy as np
import pytest
from numpy.typing import NDArray

from eft_client.dynamics.statistics.curve import Curve
from eft_client.dynamics.statistics.squeezing import Squeezing, squeezing

FALLS = [-50, -48, -47, -49, -52, -55]
RISES = [-20, -18, -16, -14, -12, -10]
NORMS = [250, 251, 253, 256, 260, 265]
OTHERS = {"initial": [-60, -61, -63, -66, -70, -75], "random": [-90, -91, -92, -95, -99, -104]}


def noisy(levels: list[float], seed: int, *, apart: float = 20.0, shaky: float = 0.3) -> Curve:
    """Forty prompts around the levels: far from each other, but moving together."""
    rng = np.random.default_rng(seed)
    values: NDArray[np.float64] = np.array(levels)[:, None] + rng.normal(0, apart, 40)
    return Curve(values + rng.normal(0, shaky, values.shape), repeats=1000)


def found(
    chosen: list[float] = FALLS,
    argmax: list[float] = RISES,
    norms: list[float] = NORMS,
    others: dict[str, list[float]] = OTHERS,
) -> Squeezing:
    curves = {name: noisy(levels, 3 + place) for place, (name, levels) in enumerate(others.items())}
    return squeezing(noisy(chosen, 0), noisy(argmax, 1), noisy(norms, 2), curves)


def test_all_four_signs_are_squeezing_from_the_peak_on() -> None:
    all_four = found()
    assert all_four.is_complete and (all_four.peak, all_four.since) == (2, 3)
    fall, up, norm, rest = (sign.change for sign in all_four.signs)
    assert fall.value == pytest.approx(-8, abs=0.2) and fall.low < -8 + 0.2 < fall.high + 0.4
    assert up.value == pytest.approx(6, abs=0.2) and norm.value == pytest.approx(12, abs=0.2)
    assert rest.value == pytest.approx(-12, abs=0.2)
    assert {kind: round(change.value) for kind, change in all_four.others.items()} == {
        "initial": -12,
        "random": -12,
    }


@pytest.mark.parametrize(
    ("curves", "missing"),
    [
        ({"chosen": [-50, -48, -46, -44, -42, -40]}, "the chosen answer falls"),
        ({"argmax": RISES[::-1]}, "its likeliest continuation rises"),
        ({"argmax": [-20] * 6}, "its likeliest continuation rises"),
        ({"norms": [250] * 6}, "rows grow peaky (‖A‖ rises)"),
        ({"others": {"initial": [-60] * 6, "random": [-90] * 6}}, "other texts fall"),
    ],
)
def test_a_sign_that_is_missing_is_named(curves: dict[str, list[float]], missing: str) -> None:
    three = found(**curves)  # type: ignore[arg-type]
    assert not three.is_complete and [sign.name for sign in three.missing] == [missing]


def test_supervised_training_is_not_squeezing() -> None:
    learnt = found(
        chosen=[-150, -130, -110, -100, -95, -92],
        argmax=[-61, -55, -50, -47, -45, -44],
        norms=[250, 255, 260, 263, 265, 266],
        others={"initial": [-60, -58, -57, -56, -55, -54]},
    )
    assert learnt.since is None and learnt.peak == 0
    assert [sign.holds for sign in learnt.signs] == [False, True, True, False]


def test_a_fall_within_its_interval_is_none() -> None:
    curves = [noisy(levels, seed, shaky=30.0) for seed, levels in enumerate((FALLS, RISES, NORMS))]
    unsure = squeezing(*curves, {"initial": noisy(OTHERS["initial"], 9)})
    assert unsure.since is None and not unsure.signs[0].holds


def test_a_dip_that_recovers_does_not_count_as_the_beginning() -> None:
    dipped = found(chosen=[-40, -50, -40, -46, -47, -48])
    assert dipped.peak in (0, 2) and dipped.since == 3


def test_a_fall_from_the_first_step_on_is_squeezing_from_the_second() -> None:
    at_once = found(chosen=[-50, -52, -54, -56, -58, -60])
    assert (at_once.peak, at_once.since) == (0, 1) and at_once.is_complete


def test_one_kind_that_does_not_fall_leaves_the_others_mean_to_decide() -> None:
    mixed = found(others=OTHERS | {"permuted": [-80, -80, -80, -80, -80, -80]})
    assert mixed.is_complete and mixed.others["permuted"].high > 0 > mixed.others["permuted"].low
