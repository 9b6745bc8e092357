"""The output of a batch: OpenAI's format, one answer a line, and how a run takes up where another stopped."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from eft_client.jsonl import ResumableLines
from eft_server.api.in_process import Answered
from eft_server.batch.requests import Defaults
from eft_server.errors import BatchError, shown
from eft_server.family.family import BASE
from eft_server.family.file import ServerConfig

__all__ = ["AnswerFile", "made_with"]

SUFFIX = ".made-with.json"
"""What the note's name ends with: the file beside the output that says what its answers were made with."""

_SHOWN_DIFFERENCES = 3


def made_with(config: ServerConfig, defaults: Defaults) -> dict[str, Any]:
    """What answers depend on beside their requests: the checkpoints, the weights and the names of weights."""
    members = {BASE: config.base, **config.references, **config.experts}
    settings = {config.name: config.defaults, **config.aliases}
    return {
        "members": {name: _plain(spec, "description", "tensor_parallel") for name, spec in members.items()},
        "settings": {name: _plain(setting, "description") for name, setting in settings.items()},
        "model": defaults.model,
        "eft": defaults.eft,
    }


def _plain(section: BaseModel, *without: str) -> dict[str, Any]:
    """A section as JSON values, less what says nothing about answers."""
    return section.model_dump(mode="json", exclude=set(without), exclude_none=True)


class AnswerFile:
    """The file that answers are appended to, locked while it is open.

    Attributes:
        done: The custom_ids that have a complete line.
    """

    def __init__(self, path: Path, made: Mapping[str, Any], *, force: bool = False) -> None:
        """Open the file, or make it; a last line that was cut short is cut off.

        Args:
            path: The file.
            made: What the answers to come are made with.
            force: Append to answers that were made with something else.

        Raises:
            BatchError: It cannot be written, somebody else is writing it, or it holds something else.
        """
        self.path = path
        self._note = path.with_name(path.name + SUFFIX)
        with contextlib.ExitStack() as undo:
            self._lines = undo.enter_context(ResumableLines(path, BatchError))
            before = self._read_note()
            if os.path.getsize(path) and not force:
                self._require_same(before, made)
            self.done = {self._custom_id(number, line) for number, line in self._lines.read()}
            if before != made:
                self._note.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

    def write(self, custom_id: str, answered: Answered) -> None:
        """Append an answer; it is in the system's hands when this returns.

        Raises:
            BatchError: The disk is full, or the like.
        """
        name = f"batch_req_{uuid.uuid4().hex}"
        response = {
            "status_code": answered.status,
            "request_id": answered.body.get("id") or name,
            "body": answered.body,
        }
        self._lines.append({"id": name, "custom_id": custom_id, "response": response, "error": None})

    def _read_note(self) -> dict[str, Any] | None:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) else None

    def _require_same(self, before: Mapping[str, Any] | None, made: Mapping[str, Any]) -> None:
        advice = "name another output, or --force to append all the same"
        if before is None:
            raise BatchError(
                f"{self.path}: is not empty, and without {self._note.name} beside it nothing says "
                f"what its answers were made with: {advice}"
            )
        differences = list(_differences(before, made))
        if differences:
            more = ", …" if len(differences) > _SHOWN_DIFFERENCES else ""
            listed = ", ".join(differences[:_SHOWN_DIFFERENCES]) + more
            raise BatchError(f"{self.path}: its answers were made with other settings ({listed}): {advice}")

    def _custom_id(self, number: int, line: bytes) -> str:
        try:
            custom_id = json.loads(line)["custom_id"]
        except (ValueError, KeyError, TypeError):
            custom_id = None
        if not isinstance(custom_id, str):
            raise BatchError(f"{self.path}:{number}: is no answer of a batch; name another output")
        return custom_id


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(part), now.get(part), f"{key}.{part}" if key else str(part))
    elif before != now:
        yield f"{key} was {_value(before)} and is now {_value(now)}"


def _value(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else shown(value)
