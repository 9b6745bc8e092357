"""Files that somebody else wrote: whole, of a bounded size, and in UTF-8."""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from importlib.resources.abc import Traversable

__all__ = ["decoded", "read_text"]

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
        raise ValueError("bytes that are 0, as in UTF-16; right would be UTF-8")
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
