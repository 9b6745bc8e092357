"""The activations of a run, on disk: an array for each member and layer, and a line for each text that is in them.

A text has a fixed number of rows in every array, so that texts can come in any order and a run can resume. Memory holds
one array at a time, and of that what is being read.

Shape suffixes: R rows, H hidden.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from eft_client.jsonl import write_whole
from eft_client.probe.errors import ProbeError
from eft_client.quality.journal import Journal

__all__ = ["Read", "Store", "Wanted"]

_WANTED, _TEXTS, _SHAPES = "wanted.json", "texts.jsonl", "shapes.json"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a store holds; another run's is not mixed with it.

    Attributes:
        model: the family's name at the server.
        checkpoints: what tells a member's files from those of another training, as far as they are here.
        expert: the member whose activations are probed.
        reference: the member that it was fine-tuned from.
        site: residual, or mlp.
        pool: last, mean, or none.
        layers: those asked for; None means all.
        rows: how many rows a text has: 1 where it is pooled, else that many tokens at most.
        texts: how many texts there are.
        data: the SHA-256 of the texts.
        over: weights of the expert under which the composite is scored, too.
        seed: of the choice of tokens.
    """

    model: str
    checkpoints: str
    expert: str
    reference: str
    site: str
    pool: str
    layers: tuple[int, ...] | None
    rows: int
    texts: int
    data: str
    over: tuple[float, ...] = ()
    seed: int = 0

    @property
    def members(self) -> tuple[str, str]:
        """The expert and its reference."""
        return self.expert, self.reference


@dataclass(frozen=True, kw_only=True)
class Read:
    """What is known of a text beside its activations.

    Attributes:
        token_ids: of the completion, its end included.
        tokens: those that have a row, in order, as places in `token_ids`; none where the text is pooled.
        rewards: the expert's implicit reward of each token, in nats; NaN where it is not finite.
        over: by weight, what the composite gives each token more than the base does.
    """

    token_ids: Sequence[int]
    tokens: Sequence[int]
    rewards: Sequence[float]
    over: Mapping[float, Sequence[float]]


class Store:
    """A folder of activations; use it as a context, for another process must not write it.

    Raises:
        ProbeError: The folder holds those of another run; the message says what differs.
        StudyError: It cannot be written, or a line of it is none of ours.
    """

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.wanted = wanted
        self._folder = folder
        self._journal = Journal(folder / _TEXTS)
        try:
            self._claim()
        except BaseException:
            self._journal.__exit__(None, None, None)
            raise
        self._arrays: dict[tuple[str, int], NDArray[np.float32]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arrays.clear()
        self._journal.__exit__(kind, error, trace)

    @property
    def layers(self) -> Sequence[int]:
        """The layers that it holds, in order; none before the first text came."""
        return [int(layer) for layer in self._shapes()]

    def has(self, key: str) -> bool:
        """Whether a text is in it."""
        return self._journal.get(key) is not None

    def read(self, key: str) -> Read:
        """What is known of a text that is in it."""
        entry = self._journal.get(key) or {}
        return Read(
            token_ids=entry["token_ids"],
            tokens=entry["tokens"],
            rewards=_numbers(entry["rewards"]),
            over={float(weight): _numbers(values) for weight, values in entry["over"].items()},
        )

    def write(
        self, key: str, place: int, read: Read, states: Mapping[tuple[str, int], NDArray[np.float32]]
    ) -> None:
        """Keep a text: its activations [R, H] by member and layer first, so that what has a line is whole."""
        for name, states_RH in states.items():
            start = place * self.wanted.rows
            self._array(*name, states_RH.shape[-1])[start : start + len(states_RH)] = states_RH
        over = {str(weight): _nulls(values) for weight, values in read.over.items()}
        entry = {"token_ids": list(read.token_ids), "tokens": list(read.tokens)}
        self._journal.append(key, {**entry, "rewards": _nulls(read.rewards), "over": over})

    def states(self, member: str, layer: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Some rows of a member's activations at a layer: [R, H]."""
        width = self._shapes()[str(layer)][member]
        return self._array(member, layer, width)[rows].astype(np.float64)

    def _shapes(self) -> dict[str, dict[str, int]]:
        path = self._folder / _SHAPES
        shapes: dict[str, dict[str, int]] = _object(path) if path.exists() else {}
        return dict(sorted(shapes.items(), key=lambda layer: int(layer[0])))

    def _array(self, member: str, layer: int, width: int) -> NDArray[np.float32]:
        if (member, layer) not in self._arrays:
            # A server names its members as it likes.
            path = self._folder / f"{quote(member, safe='')}.{layer}.npy"
            shape = (self.wanted.texts * self.wanted.rows, width)
            if not path.exists():
                # Each is whole or is not there, and an array that is there has its shape.
                shapes = self._shapes()
                shapes.setdefault(str(layer), {})[member] = width
                write_whole(self._folder / _SHAPES, json.dumps(shapes))
                made = path.with_suffix(".new")
                _mapped(made, "w+", shape)
                _allocate(made)
                made.replace(path)
            array = _mapped(path, "r+")
            if array.shape != shape:
                raise ProbeError(
                    f"{path}: an array of {array.shape}, expected {shape}; move {self._folder} away"
                )
            self._arrays[member, layer] = array
        return self._arrays[member, layer]

    def _claim(self) -> None:
        """Write down whose activations these are, or find out that they are another run's."""
        path, ours = self._folder / _WANTED, json.loads(json.dumps(dataclasses.asdict(self.wanted)))
        if not path.exists():
            write_whole(path, json.dumps(ours, indent=1) + "\n")
            return
        theirs = _object(path)
        other = [
            _difference(name, theirs.get(name), ours[name]) for name in ours if theirs.get(name) != ours[name]
        ]
        if other:
            raise ProbeError(
                f"{self._folder} holds the activations of another run ({'; '.join(other)}); "
                "move it away, or name another --output"
            )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProbeError(f"{path}: no file of eft probe; move {path.parent} away, or name another --output")
    return found


def _mapped(path: Path, mode: str, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, mode, np.float32, shape
    )
    return array


def _allocate(path: Path) -> None:
    """Take a file's blocks from the disk now: without room, a write through the mapping would end the process.

    Raises:
        ProbeError: There is no room.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise ProbeError(
                f"{path.parent}: no room for {size:,} bytes of activations ({error.strerror})"
            ) from None


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """What differs; of the checkpoints, the files that have changed."""
    if name == "checkpoints":
        changed = sorted(set(str(ours).split("; ")) - set(str(theirs).split("; ")))
        files = ", ".join(one.split(" ")[0] for one in changed)
        return f"these checkpoints have changed since: {files or 'one is no longer there'}"
    return f"{name} {_short(theirs)}, not {_short(ours)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}…"


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
