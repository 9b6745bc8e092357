"""Where an engine's processes come from: a fork server that has imported what they need.

An engine is two processes or more, and importing vLLM takes each of them longer than everything else in a start. So
the program imports it once and leaves a copy of itself behind, from which the others are forked:
`multiprocessing`'s fork server, only that it is forked too, where `multiprocessing` would start it afresh. That copy
is made before there are threads, OpenMP's pools or CUDA contexts, which do not survive a fork, and does nothing but
fork. A program that has such things already gets `multiprocessing`'s own fork server, which imports everything
once more, at the same time as the program.

The operator's VLLM_WORKER_MULTIPROC_METHOD ("spawn" or "fork") leaves it all to vLLM.
"""

import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import context, forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from eft_server.engine.launcher import openmp
from eft_server.engine.orphans import end_with_parent

__all__ = ["import_engine", "is_running", "leave_to_vllm", "process_context", "start"]

T = TypeVar("T")

_VLLMS_OWN = "VLLM_WORKER_MULTIPROC_METHOD"

_MODULES = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "eft_server.engine.composite",
    "eft_server.engine.runner_v1",
    "eft_server.engine.scheduler",
)

_CONTEXT_USERS = ("vllm.v1.engine.utils", "vllm.v1.engine.coordinator", "vllm.v1.executor.multiproc_executor")
"""The modules of vLLM's that start processes; each has imported `get_mp_context` by name."""

_REGISTRY = "vllm.model_executor.models.registry"

_vllms: dict[tuple[str, str], Any] = {}
"""What vLLM has at the names that are overwritten, by module and name."""

_is_clean: bool | None = None
"""Whether nothing but this package's imports had happened in this process when it imported the engine."""


def start() -> None:
    """Import the engine, and start the server that its processes will be forked from; a second call does nothing.

    To be called as early in a program as can be. The server ends with the last of the processes that know of it.
    """
    if is_running() or os.environ.get(_VLLMS_OWN):
        return
    if _can_fork():
        inherited = _descriptors()
        import_engine()
        if _cuda_is_initialised():  # By an import: the server's would be, too.
            return
        _fork_server(inherited)
    else:
        forkserver.set_forkserver_preload(["eft_server.engine.launcher.preload"])
        forkserver.ensure_running()
        import_engine()
    _take_over()


def is_running() -> bool:
    """Whether vLLM's processes come from the server."""
    return bool(_vllms)


def process_context() -> context.BaseContext:
    """What to start a process from that is to run an engine: the server, or a new interpreter where there is none."""
    return _Context() if is_running() else multiprocessing.get_context("spawn")


def leave_to_vllm() -> None:
    """Have vLLM start processes in its own way again; what it needs a new interpreter for asks for this."""
    for (module, name), value in _vllms.items():
        setattr(importlib.import_module(module), name, value)
    _vllms.clear()


def import_engine() -> None:
    """Import what an engine's processes do; called early, it leaves the program fit to be forked."""
    global _is_clean  # noqa: PLW0603 (it is the process's)
    if _is_clean is None:
        _is_clean = _nothing_happened()
    with suppress(ImportError):
        # It looks for a title's room when it is first used, and finds it as long as the environment has not changed.
        importlib.import_module("setproctitle").getproctitle()
    with _without_collections():
        for module in _MODULES:
            importlib.import_module(module)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Nothing that an import makes is garbage, and looking for it takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def become_server() -> None:
    """Make this process, which is multiprocessing's fork server, ours: once, before it forks anything."""
    import_engine()
    _serve_for_all()


def _can_fork() -> bool:
    clean = _nothing_happened() if _is_clean is None else _is_clean
    return clean and threading.active_count() == 1


def _nothing_happened() -> bool:
    return "torch" not in sys.modules and threading.active_count() == 1


def _cuda_is_initialised() -> bool:
    """Whether the driver was set up in this process, by torch or anybody else; asking does not do it."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    not_initialised = 3
    return bool(driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != not_initialised)


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def _fork_server(inherited: Iterable[int]) -> None:
    """Have multiprocessing start its fork server, and fork where it would run a new interpreter."""
    resource_tracker.ensure_running()  # A new interpreter, as the fork server would be.
    before, known = _descriptors(), set(inherited) - {0, 1, 2}

    def fork(_executable: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
        made_for_the_parent = _descriptors() - before
        with warnings.catch_warnings():
            # Python counts BLAS's threads, which end and come back around a fork by themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _serve(arguments[-1], (known | made_for_the_parent) - set(passed))
        return pid

    forkserver.set_forkserver_preload([])  # type: ignore[arg-type]  # typeshed wants a str in it
    spawn, util.spawnv_passfds = util.spawnv_passfds, fork  # type: ignore[attr-defined]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = spawn  # type: ignore[attr-defined]


def _serve(program: str, others: Iterable[int]) -> None:
    """The server's side of the fork: run multiprocessing's program for it, and never return.

    Args:
        program: What would be given to `python -c`.
        others: Descriptors that a new interpreter would not have.
    """
    status = 1
    try:
        for descriptor in others:
            with suppress(OSError):  # The one that listed them is among them.
                os.close(descriptor)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.freeze()  # What is there for good stays where it is, in memory that all processes share.
        _take_over()
        _serve_for_all()
        exec(program, {})
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _serve_for_all() -> None:
    """Let the processes that come from here use this server, too; multiprocessing's would start one each."""
    _take_over()
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]


def _take_over() -> None:
    if _vllms:
        return
    for module in _CONTEXT_USERS:
        _overwrite(module, "get_mp_context", _Context)
    _overwrite(_REGISTRY, "_run_in_subprocess", _run_in_fork)


def _overwrite(module: str, name: str, value: Any) -> None:
    target = importlib.import_module(module)
    _vllms[module, name] = getattr(target, name)
    setattr(target, name, value)


class _Process(context.ForkServerProcess):
    """A process that has the environment of the one that starts it, as if it were a new interpreter."""

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self._environment)
        openmp.read_environment(before)
        end_with_parent()
        super().run()


class _Context(context.ForkServerContext):
    """What vLLM takes its processes, locks, pipes and queues from."""

    Process = _Process  # type: ignore[assignment]


def _run_in_fork(work: Callable[[], T]) -> T:
    """Run a function elsewhere, for its result: vLLM looks into model classes so, lest they set up CUDA here."""
    import cloudpickle

    mp = _Context()
    receiver, sender = mp.Pipe(duplex=False)
    process = mp.Process(target=_send_result, args=(cloudpickle.dumps(work), sender), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that was to look into a model class ended ({process.exitcode})"
        ) from None
    process.join()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _send_result(work: bytes, sender: Connection) -> None:
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    try:
        sender.send((pickle.loads(work)(), None))
    except Exception as error:
        sender.send((None, error))
