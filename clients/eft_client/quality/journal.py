"""An append-only file of what was paid for: found again by the content of what was asked."""

import fcntl
import hashlib
import json
import os
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eft_client.quality.errors import StudyError

__all__ = ["MAX_LINE_BYTES", "Journal", "content_key"]

MAX_LINE_BYTES = 64 << 20


def content_key(request: Mapping[str, Any]) -> str:
    """A request's name: the SHA-256 of its canonical JSON (keys sorted, no spaces)."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """JSON lines, each with a `key`, written whole and at once, so that a killed run loses none that it has written.

    A last line that was cut off is dropped when the file is opened; a byte-order mark and blank lines, as editors add
    them, are passed over. One run at a time holds the file.

    Raises:
        StudyError: Another run holds the file, or a line of it is no entry; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._take()
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry with this key, if one was written."""
        return self._entries.get(key)

    def append(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry; it is in the file when this returns.

        Raises:
            StudyError: The disk is full, or the file cannot be written.
        """
        line = json.dumps({"key": key, **entry}, ensure_ascii=False, allow_nan=False)
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        end = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, end)  # half a line would spoil the next one
            raise StudyError(f"{self.path}: {error.strerror or error}") from None
        self._entries[key] = {"key": key, **entry}

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"{self.path}: another run writes it; wait for it, or choose another folder"
            ) from None

    def _read(self) -> None:
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE_BYTES:
                        raise StudyError(f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                    break
                text = line.removeprefix(BOM_UTF8)
                if text.strip():
                    self._remember(text, number)
                end += len(line)
        os.ftruncate(self._file, end)

    def _remember(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line.decode("utf-8", "surrogatepass"))
            self._entries[entry["key"]] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StudyError(
                f"{self.path}, line {number}: no entry of a study: {line[:80]!r}; move the file away to start anew"
            ) from None
