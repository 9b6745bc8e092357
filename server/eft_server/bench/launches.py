"""A computation's work on a device, counted from what torch dispatches: figures that hold on any machine."""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from eft_server.engine.worker.v2 import blending, report_kernels

NUCLEUS_PASSES = 17
"""Largest number of reads of a row in which `nucleus_kernel` finds its threshold; usually it needs a few."""

_WAITS = ("aten::nonzero", "aten::_local_scalar_dense")


class Launches(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        count: kernel launches.
        waits: number of times the host waits for a result of the device.
        moved_bytes: bytes that kernels read and wrote, each tensor once; for our kernels by the formulas below.
        peak_bytes: peak size of the tensors that were made inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.waits, self.moved_bytes, self.peak_bytes = 0, 0, 0, 0
        self._live: dict[int, int] = {}
        self._counting = True

    @contextlib.contextmanager
    def others_work(self) -> Iterator[None]:
        """Count only the memory of tensors that are made meanwhile."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    @contextlib.contextmanager
    def of_our_kernels(self, *, run: bool) -> Iterator[None]:
        """Also count the kernels of `engine.worker.v2.blending` and `report_kernels`.

        Args:
            run: whether to launch them. The counts do not depend on it.
        """
        originals = {name: getattr(_module_of(name), name) for name in _MOVED_BYTES}
        for name, kernel in originals.items():
            setattr(_module_of(name), name, _Counted(self, name, kernel, run))
        try:
            yield
        finally:
            for name, kernel in originals.items():
                setattr(_module_of(name), name, kernel)

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if self._counting and not _is_free(func, given, made):
            self.count += 1
            self.waits += func.name().partition(".")[0] in _WAITS
            self.moved_bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        for tensor in made:
            self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            weakref.finalize(storage, self._live.pop, key, None)
            self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))


def _module_of(kernel: str) -> Any:
    return report_kernels if kernel.startswith("compare") else blending


def _is_free(func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
    """Whether an operator launches nothing: it allocates, or returns a view."""
    if "empty" in func.name():
        return True
    known = {tensor.untyped_storage()._cdata for tensor in given}
    is_view = bool(made) and all(tensor.untyped_storage()._cdata in known for tensor in made)
    return is_view and not func._schema.is_mutable


class _Counted:
    """Replaces a kernel, which is launched as `kernel[grid](…)`."""

    def __init__(self, launches: Launches, name: str, kernel: Any, run: bool) -> None:
        self._launches, self._name, self._kernel, self._run = launches, name, kernel, run
        self._signature = inspect.signature(getattr(kernel, "fn", kernel))

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int = 4, **options: Any) -> None:
            self._launches.count += 1
            given = self._signature.bind(*args, **options).arguments
            self._launches.moved_bytes += _MOVED_BYTES[self._name](grid, given)
            if self._run:
                self._kernel[grid](*args, num_warps=num_warps, **options)

        return launch


def _adding(grid: tuple[int, ...], given: Mapping[str, Any]) -> int:
    """Bytes of each member's logits, and of the rows and a filter's rows, which later launches also read.

    Also a bit per id for whether it is shared, 4 bytes per block, and 8 per member, filtered row and block.
    """
    rows, blocks = grid
    size, filtered = given["vocabulary"], len(given["extra_ptr"])
    ways = 1 if given["FIRST"] else 2
    read: int = sum(
        len(tensor) * min(tensor.shape[-1], size) * tensor.element_size() for tensor in given["member_ptr"]
    )
    notes: int = 4 * rows * blocks + 8 * filtered * blocks * given["COUNT"]
    kept: int = 4 * ways * size * (rows + filtered) + rows * size // 8
    return read + kept + notes


_MOVED_BYTES: dict[str, Callable[[tuple[int, ...], Mapping[str, Any]], int]] = {
    "add_kernel": _adding,
    # Blocks' maxima.
    "finish_kernel": lambda grid, given: 4 * grid[0] * given["blocks"],
    "nucleus_kernel": lambda grid, given: NUCLEUS_PASSES * 4 * grid[0] * given["vocabulary"],
    # Two rows are read, one is written.
    "filter_kernel": lambda grid, given: 3 * 4 * grid[0] * given["vocabulary"],
    # A row and the base's; then seven numbers a block.
    "compare_kernel": lambda grid, given: (
        grid[0] * given["vocabulary"] * (4 + given["base_ptr"].element_size())
    ),
    "compared_kernel": lambda grid, given: 7 * 4 * grid[0] * given["blocks"],
}
