"""The warning of squeezing: on what it fires, on what it does not, and which checkpoint it names."""

from pathlib import Path
from typing import Any

import pytest

from eft_train.results.squeezing import squeezing

from .tiny import trained


def _curves(chosen: list[float], margins: list[float], phase: str = "dpo") -> list[dict[str, Any]]:
    return [
        {"examples": 16 * index, "phase": phase, "logps_chosen": logp, "margin": margin}
        for index, (logp, margin) in enumerate(zip(chosen, margins, strict=True))
    ]


@pytest.mark.parametrize(
    ("chosen", "margins", "best"),
    [
        ([-150, -149, -151, -155], [0, 2, 5, 9], 16),
        ([-150, -152, -154, -158], [0, 2, 5, 9], 16),
        # Nearly back: the mean of the last three counts.
        ([-150, -160, -160, -150.5], [0, 2, 5, 9], 48),
    ],
)
def test_it_fires_when_chosen_answers_fall_while_the_margin_rises(
    chosen: list[float], margins: list[float], best: int
) -> None:
    found = squeezing(_curves(chosen, margins), ["dpo"], held_out=True)
    assert found is not None
    assert (found.phase, found.chosen_from, found.margin_to, found.best) == ("dpo", -150, 9, best)
    for said in (
        "fell from -150.0",
        "recipe extend",
        "dpo.loss=ipo",
        "fewer steps",
        f"after-{best:06}",
        "held-out",
    ):
        assert said in found.words


def test_a_fall_from_the_best_checkpoint_counts_where_the_end_is_above_the_start() -> None:
    curves = _curves([-5.3, -4.4, -4.0, -4.6, -4.7, -4.8], [0, 1, 2, 5, 6, 6.3])
    found = squeezing(curves, ["dpo"], held_out=True)
    assert found is not None
    assert (found.chosen_from, found.chosen_to) == (-4.0, pytest.approx(-4.7))
    assert (found.margin_from, found.margin_to, found.best, found.kept) == (2, 6.3, 32, True)


@pytest.mark.parametrize(
    ("chosen", "margins"),
    [
        ([-150, -149, -148, -147], [0, 2, 5, 9]),
        ([-150, -120, -121, -123, -124], [0, 2, 5, 7, 9]),
        ([-150, -155, -158, -160], [0, -1, -2, -3]),
        ([-150, -150.1, -150.2, -150.3], [0, 2, 5, 9]),
        ([-150], [0]),
        ([-5, -9, -8, -6, -4.9], [0, 2, 5, 7, 9]),
        ([-0.30, -0.31, -0.33, -0.35], [0, 2, 5, 9]),
    ],
    ids=[
        "chosen rise",
        "little below the best",
        "the margin falls",
        "within the noise",
        "no checkpoint",
        "it comes back",
        "a hundredth of a nat",
    ],
)
def test_it_does_not_fire_otherwise(chosen: list[float], margins: list[float]) -> None:
    assert squeezing(_curves(chosen, margins), ["dpo"], held_out=True) is None


@pytest.mark.parametrize(("first", "said"), [(-149, "that keeps"), (-152, "no checkpoint keeps")])
def test_it_says_whether_a_checkpoint_keeps_the_chosen_answers(first: float, said: str) -> None:
    found = squeezing(_curves([-150, first, -154, -158], [0, 2, 5, 9]), ["dpo"], held_out=True)
    assert found is not None
    assert said in found.words


def test_a_second_phase_is_compared_with_the_end_of_the_first() -> None:
    sft = _curves([-150, -120], [0, 1], "sft")
    later = _curves([-100, -125, -130], [0, 3, 6])[1:]
    found = squeezing([*sft, *later], ["dpo"], held_out=False)
    assert found is not None
    assert (found.chosen_from, found.margin_from) == (-120, 1)
    assert "examples that were learnt" in found.words
    assert "recipe extend" not in found.words


def test_answers_without_pairs_are_not_squeezed() -> None:
    curves = [point | {"margin": None} for point in _curves([-150, -160], [0, 0])]
    assert squeezing(curves, ["dpo"], held_out=True) is None


RECIPE = """
name: hard
phases:
  sft: {loss: sft, learning_rate: 1e-2, full_learning_rate: 1e-2, epochs: 8, warmup: 0, batch: 4, accumulation: 1}
  dpo: {loss: sigmoid, learning_rate: 1e-2, full_learning_rate: 1e-2, epochs: 4, warmup: 0, batch: 4, accumulation: 1}
"""


def test_a_training_that_squeezes_says_so(base: Path, data: Path, tmp_path: Path) -> None:
    """DPO at a rate that is far too high, from where SFT has made the chosen answers as likely as they get."""
    (tmp_path / "hard.yaml").write_text(RECIPE)
    run = trained(str(tmp_path / "hard.yaml"), base, data, tmp_path / "out", full=True)
    found = run.record["squeezing"]
    assert found["phase"] == "dpo"
    assert found["chosen_to"] < found["chosen_from"] - 1
    assert found["margin_to"] > found["margin_from"] + 1
    assert [found["words"]] == list(run.warnings)
    assert found["words"] in (run.folder / "README.md").read_text()


def test_a_training_that_does_not_squeeze_says_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    run = trained(
        "dpo", base, data, tmp_path / "out", "dpo.learning_rate=1e-3", "dpo.warmup=0", "dpo.epochs=4"
    )
    assert run.record["curves"][-1]["margin"] > 0.5
    assert (run.record["squeezing"], run.warnings) == (None, ())
    assert "## Warning" not in (run.folder / "README.md").read_text()
