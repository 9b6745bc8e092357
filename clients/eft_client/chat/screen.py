"""The output of a chat: a terminal, a dumb one, or a file; text from elsewhere cannot act on it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TextIO

from eft_client.text import printable

__all__ = ["Screen"]

BOLD, DIM, RED = "1", "2", "31"


class Screen:
    """Writes text, with as much colour and movement as there can be.

    Attributes:
        interactive: whether a person is at the terminal: prompts and status lines are shown.
        moves: whether the line that the cursor is in can be written again.
        colours: whether text can be bold, dim and red (NO_COLOR turns that off).
    """

    def __init__(self, out: TextIO, err: TextIO, *, interactive: bool) -> None:
        self._out = out
        self._err = err
        self.interactive = interactive
        self.moves = interactive and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        self.colours = self.moves and not os.environ.get("NO_COLOR")
        encoding = (getattr(out, "encoding", None) or "ascii").lower()
        self.rule = "│" if encoding.startswith("utf") else "|"

    @property
    def width(self) -> int:
        """The number of columns."""
        return shutil.get_terminal_size().columns

    def write(self, text: str, style: str | None = None) -> None:
        """Write a piece of text as it comes, with no line's end."""
        if text:
            self._out.write(self._styled(printable(text), style))
            self._out.flush()

    def think(self, text: str) -> None:
        """Write a piece of a model's thoughts: in a terminal in their place, elsewhere apart from the answers."""
        if self.interactive:
            self.write(text, DIM)
        else:
            print(printable(text), end="", file=self._err, flush=True)

    def say(self, text: str = "", style: str | None = None) -> None:
        """Write lines that were asked for."""
        self.write(f"{text}\n", style)

    def tell(self, text: str) -> None:
        """Write a line for a person at a terminal; a file does without."""
        if self.interactive:
            self.say(text, DIM)

    def complain(self, text: str) -> None:
        """Write what went wrong: in a terminal in its place, elsewhere apart from the answers."""
        if self.interactive:
            self.say(text, RED)
        else:
            print(f"error: {printable(text)}", file=self._err, flush=True)

    def rewrite(self, text: str, *, last: bool) -> None:
        """Write this line in place of the one that the cursor is in; the last time, leave it."""
        if self.moves:
            self._out.write(f"\r{printable(text)}\x1b[K" + "\n" * last)
        elif last:
            self._out.write(printable(text.rstrip()) + "\n")
        self._out.flush()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Hide what is typed meanwhile from what is written; the next prompt gets it."""
        terminal = _terminal() if self.interactive else None
        if terminal is None:
            yield
            return
        termios, before = terminal
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        try:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)

    def prompt(self, text: str) -> str:
        """The text as a prompt that readline can measure: what takes no room is marked so."""
        shown = printable(text)
        return f"\x01\x1b[{BOLD}m\x02{shown}\x01\x1b[0m\x02" if self.colours else shown

    def _styled(self, text: str, style: str | None) -> str:
        if style is None or not self.colours:
            return text
        body, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
        return f"\x1b[{style}m{body}\x1b[0m{end}"


def _terminal() -> tuple[ModuleType, list[Any]] | None:
    """What sets the terminal's modes, and the modes that it is in; None where there is no such thing."""
    try:
        import termios
    except ImportError:  # Not on every system.
        return None
    return termios, termios.tcgetattr(sys.stdin)
