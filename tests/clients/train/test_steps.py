"""Steps, the examples seen after each, and where there are checkpoints."""

import pytest

from eft_train.checkpoints import Steps

PLAIN = Steps(rows=43, batch=4, accumulation=4, epochs=2, before=100, every=16)


def test_an_epoch_ends_with_a_smaller_step() -> None:
    assert (PLAIN.an_epoch, PLAIN.total) == (3, 6)
    assert [PLAIN.seen(step) for step in range(7)] == [100, 116, 132, 143, 159, 175, 186]


def test_part_of_an_epoch_is_whole_steps() -> None:
    assert Steps(43, 4, 4, 1.5, 0, 16).total == 5


@pytest.mark.parametrize(
    ("every", "steps"),
    [(1, (1, 2, 3, 4, 5, 6)), (16, (1, 2, 3, 4, 5, 6)), (17, (2, 4, 6)), (64, (4, 6)), (999, (6,))],
)
def test_checkpoints_are_rounded_up_to_steps_and_the_last_step_has_one(
    every: int, steps: tuple[int, ...]
) -> None:
    assert Steps(43, 4, 4, 2, 0, every).checkpoints == steps
