"""How far a batch is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

__all__ = ["Progress"]

LINE_EVERY_S = 30.0


class Progress:
    """Counts requests, with their rate and the time that is left."""

    def __init__(self, total: int, already: int) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._started_s = self._told_s = time.monotonic()
        self._already = already
        self._bar = tqdm(
            total=total, initial=already, unit=" requests", dynamic_ncols=True, disable=not self._on_terminal
        )
        self._total = total
        self._count = already

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if not self._on_terminal:
            self._tell()

    def advance(self) -> None:
        """Count one more request as done."""
        self._count += 1
        self._bar.update()
        if not self._on_terminal and time.monotonic() - self._told_s >= LINE_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        meter = tqdm.format_meter(
            self._count,
            self._total,
            self._told_s - self._started_s,
            ncols=0,
            unit=" requests",
            initial=self._already,
        )
        print(meter, file=sys.stderr, flush=True)
