"""What a start shows of itself, on a terminal and elsewhere."""

import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from eft_server.engine.launcher import stages
from eft_server.engine.launcher.stages import CLEAR, Stages, member_is_loaded, weights_are_loading


class Screen(io.StringIO):
    """Standard error; a terminal or none."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture(params=[False, True], ids=["elsewhere", "terminal"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen(request.param)
    monkeypatch.setattr(stages, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("TERM", "xterm")
    return screen


def shown(screen: Screen) -> list[str]:
    """The lines that are there in the end, without the time: what is cleared is gone."""
    lines = [line.rpartition(CLEAR)[2] for line in screen.getvalue().split("\n")]
    return [
        re.sub(r"^\[ *\d+\.\d s\] ", "", re.sub(r": \d+\.\d s$", ": N s", line)) for line in lines if line
    ]


def test_stages_follow_each_other_and_members_are_told_once(screen: Screen) -> None:
    with Stages() as start:
        start.begin("first")
        start.begin("second")
        start.listen()
        member_is_loaded("base", 1_500_000_000)
        for _ in range(2):  # Two ranks load it.
            member_is_loaded("helpful", 2_560_000)
        start.end("ready")
        member_is_loaded("late", 1)
    members = ["  base: 1.50 GB", "  helpful: 2.56 MB"]
    if screen.is_terminal:
        assert shown(screen) == ["first: N s", *members, "second: N s", "ready"]
        assert f"{CLEAR}second …" in screen.getvalue()
    else:
        assert shown(screen) == ["first", "second", *members, "ready"]
        assert "\r" not in screen.getvalue()
    assert stages._SOCKET not in os.environ


def test_members_are_told_of_from_other_processes(screen: Screen) -> None:
    program = "from eft_server.engine.launcher.stages import member_is_loaded as tell; tell('far', 5_000_000)"
    with Stages() as start:
        start.begin("loading")
        start.listen()
        subprocess.run([sys.executable, "-c", program], check=True)
        start.end("ready")
    assert "  far: 5.00 MB" in shown(screen)


def test_a_large_member_is_told_of_while_it_is_read(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_TOLD_EVERY_S", 0.0)
    monkeypatch.setattr(stages, "_LINE_EVERY_S", 0.0)
    weights = [(name, SimpleNamespace(nbytes=1_000_000)) for name in "ab"]
    with Stages() as start:
        start.begin("loading")
        start.listen()
        assert list(weights_are_loading("base", weights)) == weights
        start.end("ready")
    for size in ("1.00 MB", "2.00 MB"):
        assert (
            f"loading: {size} of base …" if screen.is_terminal else f"base: {size} so far"
        ) in screen.getvalue()


def test_a_start_that_fails_leaves_its_stage(screen: Screen) -> None:
    start = Stages()
    start.begin("loading")
    start.__exit__(OSError, OSError("no memory"), None)
    [line] = shown(screen)
    assert re.fullmatch(r"loading: failed after \d+\.\d s" if screen.is_terminal else "loading", line)


def test_a_start_that_is_called_off_ends_between_two_stages(screen: Screen) -> None:
    asked: list[str] = []

    def may_go_on() -> None:
        if asked:
            raise KeyboardInterrupt

    start = Stages(may_go_on=may_go_on)
    start.begin("first")
    asked.append("a signal")
    with pytest.raises(KeyboardInterrupt):
        start.begin("second")
    with pytest.raises(KeyboardInterrupt):
        start.end("ready")
    assert "second" not in screen.getvalue() and "ready" not in screen.getvalue()


def test_a_quiet_start_shows_nothing(screen: Screen) -> None:
    with Stages(quiet=True) as start:
        start.begin("loading")
        start.listen()
        member_is_loaded("base", 1)
        start.end("ready")
    assert screen.getvalue() == ""


def test_a_dumb_terminal_gets_lines(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Stages() as start:
        start.begin("loading")
    assert CLEAR not in screen.getvalue()


def test_time_counts_from_the_beginning_that_is_given(screen: Screen) -> None:
    with Stages(began_s=stages.time.time() - 60) as start:
        start.show("later")
    assert re.search(r"\[ 60\.\d s\] later", screen.getvalue())
