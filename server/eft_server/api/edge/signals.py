"""Signals that end the program: how a start is interrupted and cleaned up."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from types import FrameType

import psutil

__all__ = [
    "GRACE_S",
    "STOP_SIGNALS",
    "ended_by_signals",
    "handled_by",
    "interrupted_by_signals",
    "raise_if_interrupted",
    "stop_at_once_on_signals",
    "tell",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 10
START_GRACE_S = 3
"""How long a stage of the start may go on after a signal."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let a stop signal interrupt the start of an engine: between two stages, or by force if that takes too long.

    The signal handler raises nothing: within vLLM, an exception could be lost or show a long traceback.
    """
    _asked.clear()
    with handled_by(_note):
        try:
            yield
        finally:
            _asked.clear()


def raise_if_interrupted() -> None:
    """Interrupt the start if a signal has come.

    Raises:
        KeyboardInterrupt: A signal has come.
    """
    if _asked:
        _asked.insist(GRACE_S)
        raise KeyboardInterrupt


def stop_at_once_on_signals() -> None:
    """From now on, let a signal end the program at once, within `interrupted_by_signals`: it is stopping already."""
    _asked.again()


class _Asked:
    """Whether a signal came, and a timer that ends the program if nothing else does."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._timer: threading.Timer | None = None
        self._is_last = False

    def __bool__(self) -> bool:
        return self._number is not None

    def again(self) -> None:
        self._is_last = True

    def note(self, number: int) -> None:
        if self._is_last or self._number is not None:
            _leave(number)
        self._number = number
        self.insist(START_GRACE_S)

    def insist(self, after_s: float) -> None:
        self._stop()
        self._timer = threading.Timer(after_s, _leave, (self._number,))
        self._timer.daemon = True
        self._timer.start()

    def clear(self) -> None:
        self._number, self._is_last = None, False
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


_asked = _Asked()


def _note(number: int, _frame: FrameType | None) -> None:
    _asked.note(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a stop signal end the program at once, while there is nothing to clean up.

    An exception could be lost: Python drops those that are raised in destructors.
    """
    with handled_by(_leave_at_once):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install a handler for stop signals, and restore the former ones afterwards."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def tell(text: str) -> None:
    """Say something to the operator on stderr, also within a signal handler; nothing happens if nobody reads it.

    An error would surface wherever the signal came: out of the event loop, so that no request could be ended.
    """
    with suppress(OSError, RuntimeError, ValueError):  # No reader, within another write to it, closed.
        print(text, file=sys.stderr, flush=True)


def _leave_at_once(number: int, _frame: FrameType | None) -> None:
    util._run_finalizers()  # type: ignore[attr-defined]  # The fork server's folder.
    os._exit(128 + number)


def _leave(number: int) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
