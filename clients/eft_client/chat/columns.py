"""Two answers side by side, each in its column, as they are written."""

import re

from rich.cells import cell_len, set_cell_size

from eft_client.chat.screen import Screen
from eft_client.text import printable

__all__ = ["MIN_COLUMN", "Columns", "column_width", "wrapped"]

MIN_COLUMN = 32
_GUTTER = 3
_TAB = "    "


def column_width(screen_width: int) -> int:
    """The cells that each of two columns has; the last column of a terminal stays free, or it would break lines."""
    return (screen_width - 1 - _GUTTER) // 2


class Columns:
    """Two growing texts, shown row by row.

    A row is final once both columns have gone past it, so nothing above the cursor's line is ever written again: that
    works in any terminal, and leaves a record to scroll back to. The column that is ahead waits.
    """

    def __init__(self, screen: Screen, heads: tuple[str, str]) -> None:
        self._screen = screen
        self._width = column_width(screen.width)
        self._row = 0
        self._texts = ["", ""]
        self._done = [False, False]
        for left, right in zip(
            *_evened([wrapped(printable(head), self._width) for head in heads]), strict=True
        ):
            screen.rewrite(self._line(left, right), last=True)
        screen.say(
            "─" * self._width + "─┼─" + "─" * self._width if screen.rule == "│" else "-" * (2 * self._width)
        )

    def add(self, side: int, text: str) -> None:
        """Add text to one of the columns."""
        self._texts[side] += printable(text).replace("\t", _TAB)
        self._show()

    def end(self, *sides: int) -> None:
        """Nothing more will come in these columns."""
        for side in sides:
            self._done[side] = True
        self._show()

    def _show(self) -> None:
        columns = [wrapped(text, self._width) for text in self._texts]
        while all(
            done or self._row < len(lines) - 1 for done, lines in zip(self._done, columns, strict=True)
        ) and self._row < max(map(len, columns)):
            self._screen.rewrite(self._current(columns), last=True)
            self._row += 1
        if not all(self._done):
            self._screen.rewrite(self._current(columns), last=False)

    def _current(self, columns: list[list[str]]) -> str:
        left, right = (lines[self._row] if self._row < len(lines) else "" for lines in columns)
        return self._line(left, right)

    def _line(self, left: str, right: str) -> str:
        return f"{set_cell_size(left, self._width)} {self._screen.rule} {right}"


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken at spaces where there are any.

    Going on with the text changes no line but the last, and adds some.
    """
    return [line for paragraph in text.split("\n") for line in _wrapped_paragraph(paragraph, width)]


def _wrapped_paragraph(text: str, width: int) -> list[str]:
    lines, line, used = [], "", 0
    for word in re.findall(r" +|[^ ]+", text):
        size = cell_len(word)
        if used + size <= width:
            line, used = line + word, used + size
            continue
        if used or word.startswith(" "):
            lines.append(line)
            line, used = "", 0
        if not word.startswith(" "):
            *full, line = _cut(word, width)
            lines += full
            used = cell_len(line)
    return [*lines, line]


def _cut(word: str, width: int) -> list[str]:
    parts, part, used = [], "", 0
    for character in word:
        size = cell_len(character)
        if used + size > width:
            parts.append(part)
            part, used = "", 0
        part, used = part + character, used + size
    return [*parts, part]


def _evened(columns: list[list[str]]) -> list[list[str]]:
    height = max(map(len, columns))
    return [lines + [""] * (height - len(lines)) for lines in columns]
