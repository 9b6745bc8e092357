"""Signals while an engine starts: noted, acted on between two stages, and forgotten afterwards."""

import io
import os
import signal
import sys

import pytest
from typing_extensions import override

from eft_server.api.edge import signals
from eft_server.api.edge.signals import STOP_SIGNALS, interrupted_by_signals, raise_if_interrupted, tell


@pytest.fixture
def insisted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stand in for the timer: after how many seconds it would end the program."""
    after_s: list[float] = []
    monkeypatch.setattr(signals._Asked, "insist", lambda _, seconds: after_s.append(seconds))
    return after_s


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_nothing_where_it_hits_and_ends_the_start_later(
    number: int, insisted: list[float]
) -> None:
    with interrupted_by_signals():
        raise_if_interrupted()
        os.kill(os.getpid(), number)
        assert insisted == [signals.START_GRACE_S]
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
        assert insisted == [signals.START_GRACE_S, signals.GRACE_S]
    raise_if_interrupted()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with interrupted_by_signals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("error", [BrokenPipeError(), RuntimeError("reentrant call"), ValueError("closed")])
def test_a_handler_that_cannot_say_anything_raises_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stderr(io.StringIO):
        @override
        def flush(self) -> None:
            raise error

    monkeypatch.setattr(sys, "stderr", Stderr())
    tell("Stopping")
