"""The headers of safetensors files: names, shapes and sizes of the tensors, but no weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["StoredTensor", "read_header"]

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The format's limit."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: The format's name for its dtype, such as ``BF16``.
        shape: Its shape.
        size_bytes: Its size in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def numbers(self) -> int:
        """Number of elements; packed numbers count as their containers."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
        ValueError: The file is not a safetensors file, or is truncated.
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
        raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
    stated = sum(tensor.size_bytes for tensor in tensors.values())
    if stored < stated:
        raise ValueError(f"{path.name} is truncated: {stored} bytes of tensors, but its header says {stated}")
    return tensors


def _tensor(entry: dict[str, list[int] | str]) -> StoredTensor:
    start, stop = map(int, entry["data_offsets"])
    return StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), stop - start)
