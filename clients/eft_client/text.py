"""Text from elsewhere: read within bounds, its characters whole, safe to show on a terminal."""

import math
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from importlib.resources.abc import Traversable

__all__ = [
    "HALF",
    "Mender",
    "decoded",
    "finite_number",
    "mended",
    "printable",
    "read_text",
    "shortened",
]

# Files


#: At the beginning of any line: files that were joined by `cat` have them inside, too.
_MARKS = re.compile(r"^\ufeff", re.MULTILINE)


def decoded(data: bytes) -> str:
    """UTF-8 as text, less byte-order marks at the beginning of lines.

    Raises:
        ValueError: It is not UTF-8; the message says what it is.
    """
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ValueError("UTF-16, and not UTF-8; convert it, as iconv -f UTF-16 -t UTF-8 does")
    if b"\0" in data:
        raise ValueError("zero bytes, as in UTF-16; expected UTF-8")
    try:
        return _MARKS.sub("", data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None


def read_text(path: Traversable, most_bytes: int, wrong: type[Exception]) -> str:
    """Read a UTF-8 file, less byte-order marks at the beginning of lines; nothing beyond the bound is read.

    Args:
        path: A path, or a file in a package.
        most_bytes: Its largest size.
        wrong: What to raise.

    Raises:
        wrong: The file cannot be read, is larger, or is not UTF-8; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise wrong(f"{path}: {error}") from None
    if len(content) > most_bytes:
        raise wrong(f"{path}: larger than {most_bytes} bytes")
    try:
        return decoded(content)
    except ValueError as error:
        raise wrong(f"{path}: {error}") from None


def finite_number(text: str) -> float | None:
    """The number that the text says; None where it says none, or NaN or infinity."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# Characters that were cut in two: some servers send an emoji as the two halves that UTF-16 has, a piece each.

HALF = re.compile(r"[\ud800-\udfff]")
_FIRST_HALF_AT_END = re.compile(r"[\ud800-\udbff]\Z")


def mended(text: str) -> str:
    """The text with adjacent halves joined into one character, and a replacement sign for a half without the other."""
    if not HALF.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Mender:
    """Mends a stream's texts: a half at the end of a piece waits for the next piece of its choice."""

    def __init__(self) -> None:
        self._waiting: dict[int, str] = {}

    def mend(self, index: int, text: str, *, last: bool) -> str:
        """What a piece adds to the choice of this index; in its last piece nothing waits."""
        text = self._waiting.pop(index, "") + text
        if not last and (half := _FIRST_HALF_AT_END.search(text)):
            self._waiting[index] = half[0]
            text = text[:-1]
        return mended(text)


# Terminals

_SYMBOLS = 0x2400
_NEXT_LINE_AND_SEPARATORS = {0x85: " ", 0x2028: "\n", 0x2029: "\n"}
_DANGEROUS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
"""C0 but tab and newline, DEL, C1, marks that reverse the direction of writing, annotations, lone surrogates."""


def printable(text: str) -> str:
    """The text with every character that could act on a terminal replaced by one that is only seen.

    Escape becomes ``␛``, so a sequence that would colour, move or retitle stays as harmless letters. Tabs and
    newlines remain. Characters are replaced one by one, so pieces of a stream may be cut anywhere.
    """
    return _DANGEROUS.sub(_sign, text)


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_SYMBOLS + code)
    return "\u2421" if code == 0x7F else _NEXT_LINE_AND_SEPARATORS.get(code, "\ufffd")


def shortened(text: str, max_chars: int) -> str:
    """The text on one line, printable, and cut with an ellipsis where it is longer than `max_chars`."""
    line = " ".join(printable(text[: max_chars * 4 + 1]).split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
