"""What a capture records, and its replay: calls of kernels on addresses.

A kernel is a call that reaches the dispatcher and is not a view, or a call that hides its kernels from the dispatcher
and is handed over whole (`run`): Triton's under its interpreter, or a compiled piece of a model.
"""

import ctypes
import gc
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from .arena import Arena, Place, poison, viewed

SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::argwhere",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique2",
}
"""Operators whose result's value or shape the host has to wait for."""

UNWRITTEN = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_permuted",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}
"""Operators that allocate and launch nothing."""

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class CaptureError(RuntimeError):
    """A device would refuse this: it says so where PyTorch does, in the call."""


class Outside:
    """Memory from outside any capture that graphs read or write.

    To a graph it is an address. It is kept mapped here, and nothing else: when all others that had it have let it go, a
    replay finds poison there.
    """

    def __init__(self) -> None:
        # Several storages may share memory, as those of one NumPy array do.
        self._storages: dict[int, dict[int, torch.UntypedStorage]] = {}

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Keep a storage mapped for good."""
        self._storages.setdefault(storage.data_ptr(), {})[storage._cdata] = storage

    def poison_dead(self, addresses: Iterable[int]) -> list[int]:
        """Overwrite those of these storages that only this registry has; their addresses."""
        dead = [
            address for address in addresses if not any(map(_has_others, self._storages[address].values()))
        ]
        for address in dead:
            poison(address, max(storage.nbytes() for storage in self._storages[address].values()))
        return dead


def _has_others(storage: torch.UntypedStorage) -> bool:
    return torch._C._storage_Use_Count(storage._cdata) > 1  # type: ignore[attr-defined]


OUTSIDE = Outside()
ARENAS: dict[object, Arena] = {}
"""By the handle of a pool."""


def in_an_arena(address: int) -> bool:
    """Tell whether an address is a graph's own memory."""
    return any(address in arena for arena in ARENAS.values())


def new_pool() -> tuple[int, int]:
    """A handle as `torch.cuda.graph_pool_handle` gives."""
    handle = (0, len(ARENAS) + 1)
    ARENAS[handle] = Arena()
    return handle


def weakly(tensor: torch.Tensor) -> torch.Tensor:
    """The same place without a claim to it, as vLLM's `weak_ref_tensor`.

    Memory from outside is claimed all the same: nothing would keep it mapped.
    """
    with _disable_current_modes():
        place = Place.of(tensor)
        return place.tensor() if in_an_arena(place.address) else tensor.detach()


class CUDAGraph:
    """In place of `torch.cuda.CUDAGraph`.

    Kernels do run during a capture, for their results' shapes; what they gave is poisoned at its end, as on a device
    none has run yet.

    Attributes:
        captures: how many graphs there are in this process.
        replays: how many replays there were in it.
        capturing: the graph that is being captured, if any.
    """

    captures = 0
    replays = 0
    capturing: "CUDAGraph | None" = None

    def __init__(self, keep_graph: bool = False) -> None:
        self._calls: list[Callable[[], None]] = []
        self._operands: list[Callable[[], None]] = []
        self._outside: set[int] = set()
        self._claimed: list[tuple[int, int]] = []
        self._taken: list[tuple[int, int]] = []
        self._pool: Any = None
        self._modes = ExitStack()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Record from here on.

        Raises:
            CaptureError: a capture is under way.
        """
        if CUDAGraph.capturing is not None:
            raise CaptureError("a graph is being captured already")
        assert not self._calls, "a graph is captured once"
        self._pool = new_pool() if pool is None else pool
        self._arena = ARENAS[self._pool]
        self._claimed = self._arena.free_blocks()
        CUDAGraph.capturing = self
        # Operators that are made of others are seen whole, whether or not gradients are off.
        self._modes.enter_context(torch._C._AutoDispatchBelowAutograd())
        self._modes.enter_context(_Recorder(self))

    def capture_end(self) -> None:
        """Stop recording; what the kernels gave is nothing yet."""
        assert CUDAGraph.capturing is self
        CUDAGraph.capturing = None
        self._modes.close()
        CUDAGraph.captures += 1
        for address, nbytes in self._taken:
            poison(address, nbytes)

    def replay(self) -> None:
        """Run the kernels on the addresses of the capture.

        Whatever was free when the capture began, this graph may write to: who still reads it finds poison.
        """
        if CUDAGraph.capturing is not None:
            raise CaptureError("a graph cannot be replayed into another's capture")
        CUDAGraph.replays += 1
        for address, nbytes in self._claimed:
            poison(address, nbytes)
        dead = OUTSIDE.poison_dead(self._outside)
        try:
            with torch.no_grad():
                for call in self._calls:
                    call()
        except Exception as error:
            if dead:
                error.add_note(f"this graph reads memory that its owner has let go since the capture: {dead}")
            raise

    def reset(self) -> None:
        """Forget the kernels; the pool's memory is whoever's views it has."""
        self._calls.clear()

    def pool(self) -> Any:
        """The handle of the memory that this graph allocates from."""
        return self._pool

    def __len__(self) -> int:
        """How many kernels a replay launches."""
        return len(self._calls)

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, writes: bool
    ) -> Any:
        """Call a function now and in each replay.

        Args:
            function: what to call. In replays its arguments lie where these lie, and nothing holds them.
            args: tensors, others and containers of both.
            kwargs: as `args`.
            writes: whether it may write to its arguments. One that does not, and gives back views alone, is no kernel.

        Returns:
            What the function gives, new tensors laid into the arena.
        """
        with _disable_current_modes():
            given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
            known = {item.untyped_storage().data_ptr() for item in given}
            result = function(*args, **kwargs)
            made = [
                item
                for item in tree_leaves(result)
                if isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() not in known
            ]
            if not made and not writes:
                return result
            moved = self._moved(made)
            self._calls.append(self._call(function, args, kwargs, made, moved))
            return tree_map(lambda item: moved.get(id(item), item), result)

    def allocate(self, result: Any) -> Any:
        """Lay new tensors into the arena that no kernel has written."""
        with _disable_current_modes():
            moved = self._moved(
                [item for item in tree_leaves(result) if isinstance(item, torch.Tensor)], copy=False
            )
            return tree_map(lambda item: moved.get(id(item), item), result)

    def _moved(self, tensors: list[torch.Tensor], copy: bool = True) -> dict[int, torch.Tensor]:
        """New tensors by the identity of the old; those that shared a storage share one."""
        storages: dict[int, torch.UntypedStorage] = {}
        moved: dict[int, torch.Tensor] = {}
        for tensor in tensors:
            old = tensor.untyped_storage()
            new = storages.get(old.data_ptr())
            if new is None:
                new = storages[old.data_ptr()] = self._arena.take(old.nbytes())
                self._taken.append((new.data_ptr(), old.nbytes()))
                if copy:
                    ctypes.memmove(new.data_ptr(), old.data_ptr(), old.nbytes())
            moved[id(tensor)] = viewed(new, Place.of(tensor))
        return moved

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        made: list[torch.Tensor],
        moved: dict[int, torch.Tensor],
    ) -> Callable[[], None]:
        """The call that a replay makes; it holds none of the tensors."""
        args, kwargs = tree_map(self._operand, (args, kwargs))
        known = {
            item.untyped_storage().data_ptr() for item in tree_leaves((args, kwargs)) if _is_tensor(item)
        }
        remade = any(isinstance(item, _Remade) for item in tree_leaves((args, kwargs)))
        places = [Place.of(moved[id(tensor)]) for tensor in made]

        def call() -> None:
            now, named = tree_map(_now, (args, kwargs)) if remade else (args, kwargs)
            result = function(*now, **named)
            if not places:
                return
            fresh = [
                item
                for item in tree_leaves(result)
                if _is_tensor(item) and item.untyped_storage().data_ptr() not in known
            ]
            for place, tensor in zip(places, fresh, strict=True):
                assert (tuple(tensor.shape), tensor.stride()) == (place.size, place.stride), (
                    "of another layout"
                )
                storage = tensor.untyped_storage()
                ctypes.memmove(place.address, storage.data_ptr(), min(storage.nbytes(), place.nbytes))

        return call

    def _operand(self, item: Any) -> Any:
        if not _is_tensor(item):
            return item
        if (origin := getattr(item, "made_by", None)) is not None:
            function, kwargs = origin
            return _Remade(function, {name: self._operand(value) for name, value in kwargs.items()})
        place = Place.of(item)
        if place.nbytes and not in_an_arena(place.address):
            OUTSIDE.keep(item.untyped_storage())
            self._outside.add(place.address)
        return place.tensor()


class _Remade:
    """An argument that each replay makes anew, from where its own arguments lie."""

    def __init__(self, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        self._function, self._kwargs = function, kwargs

    def now(self) -> Any:
        return self._function(**self._kwargs)


def _now(item: Any) -> Any:
    return item.now() if isinstance(item, _Remade) else item


def remade(function: Callable[..., torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """Make a tensor that graphs are not to remember, but to make anew in each replay from the same arguments' places.

    For what only the CPU's kernels have and prepare on the host in each step, where CUDA's read lengths on the device.
    """
    tensor = function(**kwargs)
    tensor.made_by = (function, kwargs)  # type: ignore[attr-defined]
    return tensor


def _is_tensor(item: Any) -> bool:
    return isinstance(item, torch.Tensor)


class _Recorder(TorchDispatchMode):
    """Hands each kernel of a capture to its graph."""

    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in SYNCHRONISING or (name.startswith("aten::index") and _selects_by_mask(args)):
            refuse(name)
        if _is_python(func):
            with self:
                return func.redispatch(CPU, *args, **kwargs)
        if name in UNWRITTEN:
            return self._graph.allocate(func(*args, **kwargs))
        # Schemas of others' operators may leave out what they write to.
        writes = func._schema.is_mutable or func.namespace not in ("aten", "prims")
        return self._graph.run(func, args, kwargs, writes=writes)


def _selects_by_mask(args: tuple[Any, ...]) -> bool:
    indices = [item for item in tree_leaves(args[1:2]) if _is_tensor(item)]
    return any(item.dtype in (torch.bool, torch.uint8) for item in indices)


_PYTHON: dict[Any, bool] = {}


def _is_python(func: Any) -> bool:
    """Tell whether an operator is a Python function, which hides what it calls from a mode."""
    if func not in _PYTHON:
        dump = "" if func.namespace == "aten" else torch._C._dispatch_dump(func.name())
        kernel = next((line for line in dump.splitlines() if line.startswith("CPU: ")), "")
        _PYTHON[func] = ".py:" in kernel
    return _PYTHON[func]


def refuse(what: str) -> None:
    """Say what CUDA says of what would wait for the device.

    Raises:
        CaptureError: always.
    """
    raise CaptureError(f"operation not permitted when stream is capturing: {what}")


class graph:
    """In place of `torch.cuda.graph`."""

    def __init__(
        self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        self._graph, self._pool = cuda_graph, pool

    def __enter__(self) -> None:
        gc.collect()
        self._graph.capture_begin(self._pool)

    def __exit__(self, *error: object) -> None:
        self._graph.capture_end()
