"""Signals that end the program: how a start is given up, and what must not outlive it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import util
from types import FrameType

import psutil

__all__ = ["GRACE_S", "STOP_SIGNALS", "ended_by_signals", "interrupted_by_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 10


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turn a stop signal into KeyboardInterrupt, which ends a start wherever it is."""
    with _handled_by(_interrupt):
        yield


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a stop signal end the program on the spot, as long as there is nothing to be stopped.

    An exception could be lost: Python drops those that are raised in destructors.
    """
    with _handled_by(_leave_at_once):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _leave_at_once(number: int, _frame: FrameType | None) -> None:
    util._run_finalizers()  # type: ignore[attr-defined]  # The fork server's folder.
    os._exit(128 + number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Stop a start. vLLM sometimes loses the exception while it waits for its processes, so a timer insists."""
    timer = threading.Timer(GRACE_S, _leave, (number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _leave(number: int) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
