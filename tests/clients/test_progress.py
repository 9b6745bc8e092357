"""Long work says how far it is wherever it runs."""

import io
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
