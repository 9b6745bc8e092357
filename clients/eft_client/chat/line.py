"""The input line: editing, a lasting history, and completion by Tab, all by readline; or plain input."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from eft_client.chat.screen import Screen
from eft_client.errors import WrongArgument
from eft_client.text import decoded

__all__ = ["Line"]

HISTORY_LINES = 1000
Completer = Callable[[str, str], Sequence[str]]
"""From what stands before a word, and the word's beginning, to what it may become."""


class Line:
    """Reads the input, a line at a time."""

    def __init__(self, screen: Screen, complete: Completer) -> None:
        self._screen = screen
        self._complete = complete
        self._found: list[str] = []
        self._lines = 0
        self._history = _history_file()
        # Imported only where it can be of use: it talks to the terminal when it is.
        self._readline = _readline() if screen.moves else None
        if self._readline:
            self._set_up(self._readline)

    def read(self, prompt: str) -> str:
        """One message: a line, or several where a line ends in a backslash.

        A byte-order mark at the beginning of a line that is not typed is no part of it.

        Raises:
            EOFError: There is no more.
            KeyboardInterrupt: Ctrl-C.
            WrongArgument: What is not typed is not UTF-8.
        """
        lines = [self._one(prompt)]
        while lines[-1].endswith("\\"):
            try:
                following = self._one("… ")
            except EOFError:
                if self._screen.interactive:
                    raise
                break  # Nothing follows the last line: its backslash is text.
            lines[-1] = lines[-1][:-1]
            lines.append(following)
        return "\n".join(lines)

    def _one(self, prompt: str) -> str:
        if not self._screen.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return self._piped(line.rstrip("\r\n"))
        line = input(self._screen.prompt(prompt) if self._readline else prompt)
        self._keep()
        return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _piped(self, line: str) -> str:
        self._lines += 1
        try:
            return decoded(line.encode("utf-8", "surrogateescape"))
        except ValueError as error:
            raise WrongArgument(f"line {self._lines} of the input: {error}") from None

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_completer(self._candidate)
        readline.set_completer_delims(" \t\n,|")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        readline.set_history_length(HISTORY_LINES)
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            readline.read_history_file(self._history)
        except OSError as error:
            self._screen.tell(
                f"the history of what you type cannot be saved: {self._history}: {error.strerror}"
            )
            self._history = Path(os.devnull)

    def _keep(self) -> None:
        """Write the history at once: a connection that is lost takes nothing with it."""
        if self._readline and self._history != Path(os.devnull):
            try:
                self._readline.write_history_file(self._history)
            except OSError as error:
                self._screen.tell(
                    f"the history of what you type cannot be saved: {self._history}: {error.strerror}"
                )
                self._history = Path(os.devnull)

    def _candidate(self, word: str, state: int) -> str | None:
        """What readline asks again and again, with 0, 1, 2, …, until there is no more."""
        assert self._readline is not None
        if state == 0:
            before = self._readline.get_line_buffer()[: self._readline.get_begidx()]
            self._found = [found for found in self._complete(before, word) if found.startswith(word)]
        return self._found[state] if state < len(self._found) else None


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Some builds of Python have none.
        return None
    return readline


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "eft" / "chat-history"
