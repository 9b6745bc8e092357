"""Long work says how far it is wherever it runs."""

import io
import re
import sys

import pytest

from eft_client import progress
from eft_client.progress import Progress


def test_elsewhere_than_on_a_terminal_lines_tell_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        shown.say("waiting for [base]")
        advance = shown.begin("measuring", 3)
        for _ in range(3):
            advance(now="base")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("] ", 1)[1] for line in err.splitlines()] == [
        "waiting for [base]",
        "measuring: 0 of 3",
        "measuring: 3 of 3 (base)",
    ]


def test_a_line_comes_every_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Progress() as shown:
        advance = shown.begin("reading", 4)
        advance(2)
        advance(2)
    assert capsys.readouterr().err.count("of 4") == 3


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as shown:
        shown.say("waiting")
        shown.begin("measuring", 2)(2, now="[base]")
    assert "waiting" in terminal.getvalue()
    assert "measuring: [base]" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_what_was_done_before_counts_and_is_in_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Progress() as shown:
        advance = shown.begin("answers", 10, done=4, unit="requests")
        for _ in range(6):
            advance()
    (*_, last) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\[ +\d+ s\] answers: 10/10 requests \(0\.\d\d requests/s\)", last)


def test_a_stage_that_did_not_come_to_its_end_says_how_far_it_came(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress() as shown:
        shown.begin("answers", 8)(8)
        shown.begin("\x1b[2Jjudging", 8)(3)
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "answers: 0 of 8",
        "answers: 8 of 8",
        "␛[2Jjudging: 0 of 8",
        "␛[2Jjudging: 3 of 8",
    ]


def test_a_line_may_be_asked_for_and_parts_of_a_step_count(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        stage = shown.begin("rounds", 2)
        stage.reach(0.5, "one")
        stage.reach(1.5, "\x1b[2J[two]", tell=True)
        stage.reach(2, "two")
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["rounds: 0 of 2", "rounds: 1 of 2 (␛[2J[two])", "rounds: 2 of 2 (two)"]


def test_the_end_is_told_once_however_much_comes_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        stage = shown.begin("rounds", 1)
        for over in (1, 2, 3):
            stage.reach(1, f"{over} requests")
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["rounds: 0 of 1", "rounds: 1 of 1 (1 requests)"]
