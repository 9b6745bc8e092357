"""The gap closed."""

import numpy as np
import pytest

from eft_client.quality.errors import StudyError
from eft_client.quality.statistics.bootstrap import Bootstrap
from eft_client.quality.statistics.gap import Gap, close_gaps

from .test_bootstrap import NAN, scores

GAP = Gap("a", "b", "c")


def test_the_share_closed_by_hand() -> None:
    # Emulation 0.8, small 0.4, tuned 0.9: 0.4 / 0.5.
    values = [[1.0] * 16 + [0.0] * 4, [1.0] * 8 + [0.0] * 12, [1.0] * 18 + [0.0] * 2]
    [found] = close_gaps(Bootstrap.of(scores({"m": values}), repeats=2000), GAP, ["m"])
    assert (found.emulation, found.small, found.tuned) == (0.8, 0.4, 0.9)
    assert found.closed.value == pytest.approx(0.8)
    assert found.closed.low < 0.8 <= found.closed.high and not found.doubtful


def test_a_gap_that_may_be_none_is_doubtful() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((3, 30)) < 0.5).astype(float)
    [found] = close_gaps(Bootstrap.of(scores({"m": values.tolist()}), repeats=500), GAP, ["m"])
    assert found.doubtful
    # Five prompts of one mind among ten without are 2 of 32 ways of signs.
    values = np.array([[1.0] * 8 + [0.0] * 2, [1.0] * 4 + [0.0] * 6, [1.0] * 9 + [0.0]])
    [found] = close_gaps(Bootstrap.of(scores({"m": values.tolist()}), repeats=500), GAP, ["m"])
    assert found.doubtful
    [none] = close_gaps(Bootstrap.of(scores({"m": [[1.0] * 5] * 3}), repeats=100), GAP, ["m"])
    assert none.doubtful and np.isnan(none.closed.value)


def test_gaps_are_over_the_prompts_that_count_for_all_three() -> None:
    values = [[1.0, 1.0, 0.0, NAN], [0.0, 0.0, NAN, 1.0], [1.0, 1.0, 1.0, 0.0]]
    [found] = close_gaps(Bootstrap.of(scores({"m": values}), repeats=300), GAP, ["m"])
    assert (found.emulation, found.small, found.tuned) == (1.0, 0.0, 1.0)
    assert (found.closed.value, found.closed.low, found.closed.high) == (1.0, 1.0, 1.0)
    assert found.closed.prompts == 2


def test_a_metric_that_counts_nothing_is_left_out() -> None:
    bootstrap = Bootstrap.of(scores({"m": [[NAN] * 3] * 3, "k": [[0.0, 1.0, 1.0]] * 3}), repeats=100)
    assert [one.metric for one in close_gaps(bootstrap, GAP, ["m", "k"])] == ["k"]


@pytest.mark.parametrize("text", ["a,b", "a,b,c,d", "a,,c", ""])
def test_three_names_are_needed(text: str) -> None:
    with pytest.raises(StudyError, match="EMULATION,SMALL,TUNED"):
        Gap.parse(text)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(StudyError, match="no setting is called 'z'"):
        close_gaps(Bootstrap.of(scores({"m": [[1.0]]}), repeats=100), Gap("a", "z", "a"), ["m"])
