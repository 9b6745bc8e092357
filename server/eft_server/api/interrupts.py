"""Signals that end the program: how a start is given up, and what must not outlive it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

__all__ = ["GRACE_S", "STOP_SIGNALS", "interrupted_by_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 10


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turn a stop signal into KeyboardInterrupt, which ends a start wherever it is."""
    before = {number: signal.signal(number, _interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
