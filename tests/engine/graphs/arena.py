"""The memory that graphs allocate from, as PyTorch's private pools: freed with its last view, and then used again."""

import ctypes
import mmap
import weakref
from dataclasses import dataclass

import torch

ALIGNMENT = 512
"""Bytes, as in CUDA's caching allocator."""

POISON = 0xFF
"""Every byte of memory that holds nothing: NaN in any floating-point type, −1 in any integer."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies. It keeps nothing alive, which is the point: a graph knows addresses.

    Attributes:
        address: of the storage.
        nbytes: of the storage.
        offset: of the first element, in elements.
    """

    address: int
    nbytes: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Place":
        """Note a tensor's place."""
        storage = tensor.untyped_storage()
        return cls(
            storage.data_ptr(),
            storage.nbytes(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
        )

    def tensor(self) -> torch.Tensor:
        """A view of whatever lies there now."""
        return viewed(_bytes_at(self.address, self.nbytes), self)


def viewed(storage: torch.UntypedStorage, place: Place) -> torch.Tensor:
    """A tensor laid out as another one, over bytes of its own."""
    with torch.inference_mode(False):
        empty = torch.empty(0, dtype=place.dtype)
        return empty.set_(storage, place.offset, place.size, place.stride)


def poison(address: int, nbytes: int) -> None:
    """Overwrite memory that holds nothing any more."""
    ctypes.memset(address, POISON, nbytes)


def _bytes_at(address: int, nbytes: int) -> torch.UntypedStorage:
    return _storage((ctypes.c_char * nbytes).from_address(address)) if nbytes else torch.UntypedStorage(0)


def _storage(owner: ctypes.Array[ctypes.c_char]) -> torch.UntypedStorage:
    with torch.inference_mode(False):
        return torch.frombuffer(owner, dtype=torch.uint8).untyped_storage()


class Arena:
    """One pool, shared by all graphs that are captured with its handle.

    A block is freed when the last tensor over it dies, and whoever comes next may have it. Its content stays until
    then, as a device's does: what the host lets go of may be what a replay has just written. The memory stays mapped.
    """

    def __init__(self, capacity: int = 1 << 28) -> None:
        self._memory = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._capacity = capacity
        self._used = 0
        self._free: dict[int, int] = {}

    def __contains__(self, address: int) -> bool:
        return self._start <= address < self._start + self._capacity

    def take(self, nbytes: int) -> torch.UntypedStorage:
        """Allocate the smallest free block that is large enough, or a new one; its content is poison.

        Raises:
            MemoryError: the arena is full.
        """
        rounded = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        address = self._fitting(rounded)
        poison(address, rounded)
        owner = (ctypes.c_char * max(nbytes, 1)).from_address(address)
        weakref.finalize(owner, self._release, address, rounded).atexit = False
        return _storage(owner)

    def _fitting(self, nbytes: int) -> int:
        fitting = [(size, address) for address, size in self._free.items() if size >= nbytes]
        if fitting:
            size, address = min(fitting)
            del self._free[address]
            if size > nbytes:
                self._free[address + nbytes] = size - nbytes
            return address
        if self._used + nbytes > self._capacity:
            raise MemoryError(
                f"{nbytes} bytes do not fit into an arena of {self._capacity}, {self._used} are used"
            )
        self._used += nbytes
        return self._start + self._used - nbytes

    def _release(self, address: int, nbytes: int) -> None:
        self._free[address] = nbytes
        self._free = _coalesced(self._free)

    def free_blocks(self) -> list[tuple[int, int]]:
        """Addresses and sizes of what a capture may take, without what no capture has ever had."""
        return list(self._free.items())


def _coalesced(blocks: dict[int, int]) -> dict[int, int]:
    merged: dict[int, int] = {}
    last = end = -1
    for address, size in sorted(blocks.items()):
        if address == end:
            merged[last] += size
        else:
            merged[address], last = size, address
        end = address + size
    return merged
