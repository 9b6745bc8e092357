"""JSON lines: reading a line without JSON's traps, and files that one run writes and another resumes."""

import json
import math
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from eft_client.text import HALF, decoded

__all__ = ["MAX_LINE_BYTES", "ResumableLines", "finite_only", "json_value", "text_lines", "write_whole"]

MAX_LINE_BYTES = 256 << 20

# A hook for every number would make long files slow, so it runs only where there may be something to find.
_HUGE = re.compile(r"[0-9][eE]|[0-9]{19}")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str, *, finite: bool = True) -> Any:
    """The value of JSON text.

    Args:
        text: The JSON.
        finite: Whether numbers have to be finite; a caller that checks the value can name those that are not.

    Raises:
        ValueError: It is not JSON, names a key twice in an object (of which plain JSON takes the last), or holds a
            number that is not finite or text that is not Unicode; the message says so.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique}
    if finite:
        hooks["parse_constant"] = _refuse
        hooks["parse_float"] = _finite if _HUGE.search(text) else None
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("no JSON: it nests too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    if _ESCAPED_HALF.search(text) and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half of a character that is written as two escapes, which is no Unicode")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is named twice")
    return members


def _finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse(literal)


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]} is not a finite number")


def finite_only(value: Any) -> Any:
    """The value as JSON can hold it: None for numbers that are not finite, text for keys."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_only(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(part) for part in value]
    return value


def text_lines(path: Path, most_bytes: int, wrong: type[Exception]) -> Iterator[tuple[int, str]]:
    """A file's lines that say something, with their numbers; none is read past the bound.

    Args:
        path: The file.
        most_bytes: The length of the longest line that is allowed.
        wrong: What to raise.

    Raises:
        wrong: The file cannot be read, or a line is too long or is no Unicode; the message names it.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(most_bytes + 1), b""), 1):
                if len(line) > most_bytes:
                    raise wrong(f"{path}, line {number}: longer than {most_bytes:,} bytes")
                try:
                    text = decoded(line)
                except ValueError as error:
                    raise wrong(f"{path}, line {number}: {error}") from None
                if text.strip():
                    yield number, text
    except OSError as error:
        raise wrong(f"{path}: {error.strerror or error}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a killed run leaves it as it was, or whole."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


class ResumableLines:
    """A file of JSON lines that is only ever appended to, by one process at a time: locked while it is open.

    A line is written whole, so that a killed run loses none that it has written; what was cut off at the end is dropped
    when another run has read the file.
    """

    def __init__(self, path: Path, wrong: type[Exception]) -> None:
        """Open the file, or make it.

        Args:
            path: Where it is.
            wrong: What to raise.

        Raises:
            wrong: It cannot be written, or another process writes it.
        """
        import fcntl  # Not on every system, and not needed to read lines.

        self.path = path
        self._wrong = wrong
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise wrong(
                f"{path}: another process is writing it; wait for another run to end, or name another place"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self) -> Iterator[tuple[int, bytes]]:
        """The complete lines that say something, with their numbers, less byte-order marks, as editors add them.

        Once all are read, what follows the last of them is cut off; a reader that stops earlier leaves it unchanged.

        Raises:
            wrong: A line is too long to be one.
        """
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE_BYTES:
                        raise self._wrong(f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                    break
                text = line.removeprefix(BOM_UTF8)
                if text.strip():
                    yield number, text
                end += len(line)
        os.ftruncate(self._file, end)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line; it is in the file when this returns, or not at all.

        Raises:
            wrong: The disk is full, or the like.
        """
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8", "surrogatepass") + b"\n"
        end = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, end)  # half a line would spoil the next one
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> Exception:
        return self._wrong(f"{self.path}: cannot be written ({error.strerror or error})")
