"""An append-only file of answers and judgements, found again by the content of the request."""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eft_client.jsonl import ResumableLines
from eft_client.quality.errors import StudyError

__all__ = ["Journal", "content_key"]


def content_key(request: Mapping[str, Any]) -> str:
    """A request's name: the SHA-256 of its canonical JSON (keys sorted, no spaces)."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """Resumable JSON lines, each with a `key`, and every entry at hand; several threads may append.

    Raises:
        StudyError: The file cannot be written, another run holds it, or a line of it is no entry; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, dict[str, Any]] = {}
        self._turn = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{path.parent}: {error.strerror or error}") from None
        self._lines = ResumableLines(path, StudyError)
        try:
            for number, line in self._lines.read():
                self._remember(line, number)
        except BaseException:
            self._lines.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

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
        keyed = {"key": key, **entry}
        with self._turn:
            self._lines.append(keyed)
            self._entries[key] = keyed

    def _remember(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line.decode("utf-8", "surrogatepass"))
            self._entries[entry["key"]] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StudyError(
                f"{self.path}, line {number}: no entry of a study: {line[:80]!r}; move the file away to start anew"
            ) from None
