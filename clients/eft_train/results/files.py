"""Files that are written whole or not at all, by one process at a time."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eft_client.jsonl import write_whole
from eft_train.errors import TrainingError

__all__ = ["locked", "write_json"]


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


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON that people can read."""
    write_whole(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
