"""When requests are sent: as soon as another is answered, at random at a rate, or at the times in a file."""

import random
from dataclasses import dataclass
from pathlib import Path

from eft_client.load.errors import LoadError
from eft_client.text import finite_number, read_text

__all__ = ["MAX_ARRIVALS", "ClosedLoop", "Load", "OpenLoop", "Trace", "is_open", "read_trace"]

MAX_ARRIVALS = 1_000_000
MAX_TRACE_BYTES = 32 << 20
_CLOSED = "concurrency"


@dataclass(frozen=True)
class ClosedLoop:
    """A closed loop: a fixed number of requests under way; as one is answered, the next is sent."""

    concurrency: int

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{_CLOSED} {self.concurrency}"


@dataclass(frozen=True)
class OpenLoop:
    """An open loop: requests arrive at random, whether or not others are answered."""

    rate_per_s: float

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.rate_per_s:g} requests/s"

    def arrivals_s(self, count: int, rng: random.Random) -> list[float]:
        """The times of `count` arrivals, in seconds from the start: a Poisson process of this rate.

        Given their number, the arrivals of a Poisson process are independent and uniform. The number is fixed here, so
        that throughput doesn't depend on how many would have been drawn.
        """
        return sorted(rng.uniform(0, count / self.rate_per_s) for _ in range(count))


@dataclass(frozen=True)
class Trace:
    """An open loop whose arrivals somebody has recorded: seconds from the start, in order."""

    name: str
    times_s: tuple[float, ...]

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"arrivals of {self.name}"


Load = ClosedLoop | OpenLoop | Trace


def is_open(label: str) -> bool:
    """Whether a load of this label sends requests at scheduled times, whatever becomes of the others."""
    return not label.startswith(f"{_CLOSED} ")


def read_trace(path: Path) -> Trace:
    """Read arrival times: a number of seconds a line; the first arrival is the start.

    Raises:
        LoadError: The file is missing or too large, or a line holds something else; the message names the line.
    """
    lines = read_text(path, MAX_TRACE_BYTES, LoadError).splitlines()
    times = sorted(_seconds(line, path, number) for number, line in enumerate(lines, 1) if line.strip())
    if not times:
        raise LoadError(f"{path}: no arrival in it; expected a number of seconds on each line")
    if len(times) > MAX_ARRIVALS:
        raise LoadError(f"{path}: {len(times)} arrivals, and at most {MAX_ARRIVALS} are taken")
    return Trace(path.name, tuple(time - times[0] for time in times))


def _seconds(line: str, path: Path, number: int) -> float:
    seconds = finite_number(line)
    if seconds is None:
        raise LoadError(f"{path}, line {number}: {line.strip()[:60]!r} is not a number of seconds")
    return seconds
