"""How far long work is, on stderr: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

__all__ = ["LINE_EVERY_S", "Progress"]

LINE_EVERY_S = 10.0


class Progress:
    """Stages of work, each with its steps; a context manager."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=Console(stderr=True), disable=not self._on_terminal)
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, what: str) -> None:
        """Say what is going on, where nothing can be counted."""
        if self._on_terminal:
            self._bars.console.print(what, markup=False, highlight=False)
        else:
            self._line(what)

    def begin(self, stage: str, steps: int) -> Callable[..., None]:
        """Begin a stage.

        Args:
            stage: what is done in it.
            steps: how many there are.

        Returns:
            What is called with each number of steps done, one by default, and with what is being done as `now`.
        """
        bar = self._bars.add_task(stage, total=steps)
        return _Stage(self, stage, steps, bar).advance

    def _advance(self, bar: TaskID, count: int, description: str) -> None:
        self._bars.update(bar, advance=count, description=description)

    def _line(self, text: str) -> None:
        if not self._on_terminal:
            print(f"[{time.monotonic() - self._started_s:5.0f} s] {text}", file=sys.stderr, flush=True)


class _Stage:
    def __init__(self, progress: Progress, stage: str, steps: int, bar: TaskID) -> None:
        self._progress, self._stage, self._steps, self._bar = progress, stage, steps, bar
        self._done, self._now = 0, ""
        self._tell()

    def advance(self, count: int = 1, now: str = "") -> None:
        self._done, self._now = self._done + count, now
        self._progress._advance(self._bar, count, f"{self._stage}: {now}" if now else self._stage)
        if self._done >= self._steps or time.monotonic() - self._told_s >= LINE_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        now = f" ({self._now})" if self._now else ""
        self._progress._line(f"{self._stage}: {self._done} of {self._steps}{now}")
