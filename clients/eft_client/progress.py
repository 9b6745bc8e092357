"""The progress of long work, on stderr: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column

from eft_client.text import printable

__all__ = ["LINE_EVERY_S", "Progress", "Stage"]

LINE_EVERY_S = 10.0


class Progress:
    """Stages of work, each with its steps; a context manager."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        columns = (
            # What is done now may take several lines; counts and times stay whole.
            TextColumn("{task.description}", markup=False, table_column=Column()),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=Console(stderr=True), disable=not self._on_terminal)
        self._started_s = time.monotonic()
        self._stages: list[Stage] = []

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        for stage in self._stages:
            if not stage.is_over:
                stage.tell()

    def say(self, what: str) -> None:
        """Say what is going on, where nothing can be counted."""
        if self._on_terminal:
            self._bars.console.print(what, markup=False, highlight=False)
        else:
            self.line(what)

    def begin(self, stage: str, steps: int, *, done: int = 0, unit: str = "") -> "Stage":
        """Begin a stage.

        Args:
            stage: what is done in it.
            steps: how many there are.
            done: how many were done before.
            unit: what a step is, where it matters how many are done a second.

        Returns:
            What is called with each number of steps done, one by default, and with what is being done as `now`.
        """
        begun = Stage(self, stage, steps, done, unit)
        self._stages.append(begun)
        return begun

    def line(self, text: str) -> None:
        """Write a line where there is no terminal."""
        if not self._on_terminal:
            print(f"[{time.monotonic() - self._started_s:5.0f} s] {text}", file=sys.stderr, flush=True)


class Stage:
    """One stage: a bar, or its lines."""

    def __init__(self, progress: Progress, stage: str, steps: int, done: int, unit: str) -> None:
        self._progress, self._stage, self._steps, self._unit = progress, printable(stage), steps, unit
        self._before = self._done = float(done)
        self._now = ""
        self._began_s = self._told_s = time.monotonic()
        self._bar = progress._bars.add_task(self._stage, total=steps, completed=done)
        if not unit:  # There is no rate yet.
            self.tell()

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self._done >= self._steps

    def __call__(self, count: float = 1, now: str = "") -> None:
        """Add to the steps done, and say what is being done now."""
        self.reach(self._done + count, now)

    def reach(self, done: float, now: str, *, tell: bool = False) -> None:
        """Set the number of steps done; where there is no terminal, `tell` writes a line in any case."""
        was_over = self.is_over
        self._done, self._now = done, printable(now)
        doing = ", ".join(filter(None, (self._now, self._rate)))
        description = f"{self._stage}: {doing}" if doing else self._stage
        self._progress._bars.update(self._bar, completed=done, description=description)
        ends = self.is_over and not was_over
        if tell or ends or time.monotonic() - self._told_s >= LINE_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Write a line of progress, where there is no terminal."""
        self._told_s = time.monotonic()
        doing = ", ".join(filter(None, (self._now, self._rate, self._left)))
        counted = (
            f"{self._done:.0f}/{self._steps} {self._unit}"
            if self._unit
            else f"{int(self._done)} of {self._steps}"
        )
        self._progress.line(f"{self._stage}: {counted}{f' ({doing})' if doing else ''}")

    @property
    def _per_s(self) -> float:
        return (self._done - self._before) / max(time.monotonic() - self._began_s, 1e-9)

    @property
    def _rate(self) -> str:
        return f"{self._per_s:.2f} {self._unit}/s" if self._unit else ""

    @property
    def _left(self) -> str:
        if not self._unit or self.is_over or not self._per_s:
            return ""
        return f"{timedelta(seconds=round((self._steps - self._done) / self._per_s))} left"
