"""When requests are sent."""

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from eft_client.load.arrivals import ClosedLoop, OpenLoop, Trace, read_trace
from eft_client.load.errors import LoadError


def test_an_open_loop_sends_so_many_requests_in_the_time_that_its_rate_gives_them() -> None:
    times = OpenLoop(10).arrivals_s(1000, random.Random(0))
    assert times == sorted(times)
    assert len(times) == 1000
    assert times[0] >= 0
    assert times[-1] < 100


def test_gaps_between_arrivals_are_exponential() -> None:
    times = OpenLoop(10).arrivals_s(20_000, random.Random(1))
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.05)


def test_arrivals_are_the_seed_s() -> None:
    assert OpenLoop(3).arrivals_s(5, random.Random("a")) == OpenLoop(3).arrivals_s(5, random.Random("a"))
    assert OpenLoop(3).arrivals_s(5, random.Random("a")) != OpenLoop(3).arrivals_s(5, random.Random("b"))


def test_a_trace_begins_with_its_first_arrival(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_text("12.5\n\n11\n13.25\n")
    assert read_trace(tmp_path / "times.txt") == Trace("times.txt", (0.0, 1.5, 2.25))


@pytest.mark.parametrize("line", ["soon", "nan", "inf", "1,5", "0x10"])
def test_a_line_that_is_no_time_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "times.txt").write_text(f"1\n{line}\n")
    with pytest.raises(LoadError, match=f"line 2: '{line}' is not a number of seconds"):
        read_trace(tmp_path / "times.txt")


def test_a_file_without_arrivals_is_refused(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_text("\n\n")
    with pytest.raises(LoadError, match="no arrival"):
        read_trace(tmp_path / "times.txt")
    with pytest.raises(LoadError, match="missing"):
        read_trace(tmp_path / "missing.txt")


def test_loads_are_named_after_what_they_do() -> None:
    labels = [load.label for load in (ClosedLoop(4), OpenLoop(2.5), Trace("day.txt", (0.0,)))]
    assert labels == ["concurrency 4", "2.5 requests/s", "arrivals of day.txt"]
