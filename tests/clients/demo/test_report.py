"""The table says what the counts say."""

import json

import pytest

from eft_demo.evaluation import DECODINGS, Score
from eft_demo.report import Scores, as_json, as_markdown, gaps_closed, settings_in_order


def _score(correct: int) -> Score:
    return Score(safe=100, unsafe=50, correct=correct, full=80, false_refusals=1, refusals=25, compliances=20)


@pytest.fixture
def scores() -> Scores:
    levels = {"small-helpful": 40, "large-helpful": 90, "up-scaled λ=1.0": 85}
    return {
        (decoding, name): _score(levels.get(name, 50))
        for decoding in DECODINGS
        for name in settings_in_order()
    }


def test_the_closed_share_of_a_gap_is_how_far_the_emulation_gets(scores: Scores) -> None:
    gaps = [gap for gap in gaps_closed(scores) if gap["decoding"] == "greedy"]
    assert [(gap["expert"], gap["measure"]) for gap in gaps] == [("helpful", "correct")]
    assert gaps[0]["closed"] == pytest.approx((85 - 40) / (90 - 40))


def test_a_gap_within_the_noise_is_not_reported(scores: Scores) -> None:
    level = dict(scores) | {("greedy", "small-helpful"): _score(84), ("sampled", "small-helpful"): _score(84)}
    assert not gaps_closed(level)


def test_every_setting_has_a_row_in_each_table_with_count_and_share(scores: Scores) -> None:
    text = as_markdown(scores)
    assert (
        text.count("| up-scaled λ=0.5 | 50 (50.0 %) | 80 (80.0 %) | 1 (1.0 %) | 25 (50.0 %) | 20 (40.0 %) |")
        == 2
    )
    assert text.count("\n|") == 2 * (1 + 17) + 2 + 2 + 1
    assert "100 safe and 50 unsafe questions" in text


def test_the_json_holds_counts_rates_and_intervals(scores: Scores) -> None:
    first = json.loads(as_json(scores))["settings"][0]
    assert first["counts"]["correct"] == 50
    assert first["rates"]["refusals"] == 0.5
    assert first["intervals_95"]["correct"] == pytest.approx([0.4038, 0.5962], abs=1e-4)
