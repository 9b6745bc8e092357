"""The executor of a CPU engine's only rank: where its thread computes."""

import os
from collections.abc import Iterator

import pytest

from eft_server.engine.core.cpu_executor import CPUExecutor

NOT_OF_THIS_MACHINE = {1023}


class Worker:
    """Says where it is called."""

    def cores(self) -> set[int]:
        return os.sched_getaffinity(0)


@pytest.fixture
def executor() -> Iterator[CPUExecutor]:
    before = os.sched_getaffinity(0)
    one = CPUExecutor.__new__(CPUExecutor)
    one.driver_worker = Worker()
    yield one
    os.sched_setaffinity(0, before)


def test_a_step_is_computed_on_the_bound_core_and_other_work_anywhere(executor: CPUExecutor) -> None:
    before = os.sched_getaffinity(0)
    executor._cores = {min(before)}
    assert executor.collective_rpc("cores") == [{min(before)}]
    assert os.sched_getaffinity(0) == before


def test_a_core_that_was_taken_away_ends_no_step(executor: CPUExecutor) -> None:
    before = os.sched_getaffinity(0)
    executor._cores = NOT_OF_THIS_MACHINE
    assert executor.collective_rpc("cores") == [before]
    assert executor.collective_rpc("cores") == [before]
    assert os.sched_getaffinity(0) == before
