"""Files that are written whole or not at all, by one process at a time."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eft_train.errors import TrainingError

__all__ = ["locked", "write_json", "write_text"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder.

    Raises:
        TrainingError: One does.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{folder.parent}: another process trains in it; wait for its end") from None
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON that people can read."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
