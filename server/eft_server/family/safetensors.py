"""What safetensors files hold, from their headers alone: names, shapes and sizes, no weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["StoredTensor", "read_header"]

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The bound that the format itself sets."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: Its dtype in the format's words, such as ``BF16``.
        shape: Its shape.
        size_bytes: How much of the file it takes.
    """

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds; packed ones count as their containers."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
        ValueError: The file is no safetensors file, or is cut short.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(file.read(length))
        tensors = {name: _tensor(entry) for name, entry in entries.items() if name != "__metadata__"}
        stored = path.stat().st_size - _LENGTH_BYTES - length
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no safetensors file: {error}") from error
    stated = sum(tensor.size_bytes for tensor in tensors.values())
    if stored < stated:
        raise ValueError(f"{path.name} is cut short: {stored} bytes of tensors, its header says {stated}")
    return tensors


def _tensor(entry: dict[str, list[int] | str]) -> StoredTensor:
    start, stop = map(int, entry["data_offsets"])
    return StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), stop - start)
