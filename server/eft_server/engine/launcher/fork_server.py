"""A fork server for an engine's processes, which has already imported vLLM.

An engine has two processes or more, and importing vLLM takes each of them longer than the rest of a start. So the
program imports it once and forks a copy of itself, from which the others are forked: `multiprocessing`'s fork server,
except that it is itself forked, where `multiprocessing` would start a new interpreter. The copy is made before there
are threads, OpenMP pools or CUDA contexts, which do not survive a fork, and does nothing but fork. A program that
already has them gets `multiprocessing`'s usual fork server, which imports everything once more, at the same time as
the program.

If the operator sets VLLM_WORKER_MULTIPROC_METHOD ("spawn" or "fork"), vLLM starts the processes; likewise in WSL, where
it rules a fork out. It does so in Ray's actors, too, because of their threads: these get the usual fork server.
"""

import atexit
import ctypes
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import context, forkserver, popen_forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

from typing_extensions import override

from eft_server.engine.end_with_parent import end_with_parent
from eft_server.engine.launcher import openmp
from eft_server.engine.launcher.version import require_tested_vllm
from eft_server.engine.launcher.vllm_log import quieten_imports
from eft_server.engine.patches import overwrite

__all__ = ["import_engine", "is_running", "leave_to_vllm", "process_context", "start"]

T = TypeVar("T")

_VLLMS_OWN = "VLLM_WORKER_MULTIPROC_METHOD"

_MODULES = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "eft_server.engine.worker.composite",
    "eft_server.engine.worker.v1.runner",
    "eft_server.engine.core.scheduler",
)

_CONTEXT_USERS = ("vllm.v1.engine.utils", "vllm.v1.engine.coordinator", "vllm.v1.executor.multiproc_executor")
"""The vLLM modules that start processes; each has imported `get_mp_context` by name."""

_REGISTRY = "vllm.model_executor.models.registry"

_vllms: dict[tuple[str, str], Any] = {}
"""The original values of overwritten names in vLLM, by module and name."""

_server = forkserver.ForkServer()
_launching = threading.Lock()

_is_clean: bool | None = None
"""Whether this process had done nothing but import this package when it imported the engine."""


def start() -> None:
    """Import the engine, and start the server from which its processes are forked; a second call does nothing.

    Call it as early as possible. The server ends with the last of the processes that use it.

    Raises:
        ConfigError: The installed vLLM is not the version with which this package is tested.
    """
    if is_running():
        return
    require_tested_vllm()
    if os.environ.get(_VLLMS_OWN):
        import_engine()
        return
    with suppress(OSError):  # The temporary folder's path may be too long for a socket.
        if _start():
            _take_over()


def _start() -> bool:
    if _can_fork():
        inherited = _descriptors()
        import_engine()
        # If an import initialised CUDA, the server's imports would do so as well.
        if _is_wsl() or _cuda_is_initialised() or threading.active_count() > 1:
            return False
        _fork_server(inherited)
    else:
        _server.set_forkserver_preload(["eft_server.engine.launcher.preload"])
        _server.ensure_running()
        import_engine()
    return not _is_wsl()


def is_running() -> bool:
    """Whether vLLM's processes are forked from the server."""
    return bool(_vllms)


def process_context() -> context.BaseContext:
    """The context to start a process that runs an engine: the server, or a new interpreter if there is none."""
    return _Context() if is_running() else multiprocessing.get_context("spawn")


def leave_to_vllm() -> None:
    """Let vLLM start processes in its usual way again, for features that need a new interpreter."""
    for (module, name), value in _vllms.items():
        setattr(importlib.import_module(module), name, value)
    _vllms.clear()


def import_engine() -> None:
    """Import everything that an engine's processes need; if called early, the program can be forked afterwards."""
    global _is_clean  # noqa: PLW0603 (it is the process's)
    if _is_clean is None:
        _is_clean = _nothing_happened()
    quieten_imports()
    with suppress(ImportError):
        # It looks for the title's memory on first use, and finds it only while the environment is unchanged.
        importlib.import_module("setproctitle").getproctitle()
    with _without_collections():
        for module in _MODULES:
            importlib.import_module(module)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Pause garbage collection: imports make no garbage, and looking for it takes a sixth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def become_server() -> None:
    """Turn this process, multiprocessing's fork server, into ours: once, before it forks anything."""
    import_engine()
    _serve_for_all()


def _can_fork() -> bool:
    clean = _nothing_happened() if _is_clean is None else _is_clean
    return clean and threading.active_count() == 1


def _nothing_happened() -> bool:
    return "torch" not in sys.modules and len(os.listdir("/proc/self/task")) == 1


def _is_wsl() -> bool:
    from vllm.platforms.interface import in_wsl

    return bool(in_wsl())


def _cuda_is_initialised() -> bool:
    """Whether the driver has been initialised in this process; the check does not initialise it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    not_initialised = 3
    return bool(driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != not_initialised)


def _descriptors() -> set[int]:
    """The open file descriptors, except the one that this check opens."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


def _fork_server(inherited: Iterable[int]) -> None:
    """Let multiprocessing start its fork server, but fork where it would run a new interpreter."""
    resource_tracker.ensure_running()  # It needs a new interpreter.
    util._flush_std_streams()  # type: ignore[attr-defined]  # Otherwise each process would write the buffered output.
    before, known = _descriptors(), set(inherited) - {0, 1, 2}

    def fork(_executable: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
        made_for_the_parent = _descriptors() - before
        with warnings.catch_warnings():
            # Python counts BLAS's threads, which stop and restart around a fork by themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _serve(arguments[-1], (known | made_for_the_parent) - set(passed))
        return pid

    _server.set_forkserver_preload([])
    spawn, util.spawnv_passfds = util.spawnv_passfds, fork  # type: ignore[assignment]
    try:
        _server.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def _serve(program: str, others: Iterable[int]) -> None:
    """The server's side of the fork: run multiprocessing's program for it, and never return.

    Args:
        program: The argument for `python -c`.
        others: Descriptors that a new interpreter would not have.
    """
    status = 1
    try:
        for descriptor in others:
            with suppress(OSError):  # It has been closed meanwhile.
                os.close(descriptor)
        _forget_the_program()
        gc.freeze()  # Keeps permanent objects in memory that all processes share.
        _serve_for_all()
        exec(program, {})
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _forget_the_program() -> None:
    """Remove what a new interpreter would not have: signal handlers, exit handlers, and a title."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    with suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle("EFT::ForkServer")


def _serve_for_all() -> None:
    """Let the forked processes use this server as well; with multiprocessing's, each would start one.

    They get a separate process group, so that a terminal's Ctrl-C reaches only the program, which then decides about
    them. They stay in its session: Linux gives sessions equal shares of the cores, whatever their numbers of processes.
    """
    global _server  # noqa: PLW0603 (it is the process's)
    os.setpgid(0, 0)
    _take_over()
    # It stores its address in its own module.
    _server = forkserver._forkserver
    _server._lock = threading.Lock()  # type: ignore[attr-defined]
    _server.ensure_running = forkserver.ensure_running = lambda: None  # type: ignore[method-assign]


def _take_over() -> None:
    if _vllms:
        return
    for module in _CONTEXT_USERS:
        _overwrite(module, "get_mp_context", _Context)
    _overwrite(_REGISTRY, "_run_in_subprocess", _run_in_fork)


def _overwrite(module: str, name: str, value: Any) -> None:
    _vllms[module, name] = overwrite(importlib.import_module(module), name, value)


class _Popen(popen_forkserver.Popen):
    """Asks this module's server for a process; the program's use of multiprocessing's server is not affected."""

    def _launch(self, process_obj: Any) -> None:
        with _launching:
            multiprocessings = popen_forkserver.forkserver  # type: ignore[attr-defined]
            popen_forkserver.forkserver = SimpleNamespace(  # type: ignore[attr-defined]
                connect_to_new_process=_server.connect_to_new_process, read_signed=forkserver.read_signed
            )
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                popen_forkserver.forkserver = multiprocessings  # type: ignore[attr-defined]


class _Process(context.ForkServerProcess):
    """A process with the environment of the one that starts it, as if it were a new interpreter."""

    _environment: dict[str, str]

    @staticmethod
    @override
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)

    @override
    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def _bootstrap(self, parent_sentinel: int | None = None) -> NoReturn:
        """Do the process's work, then end it as an interpreter ends, since some cleanup happens only in C's exit."""
        status = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        atexit._run_exitfuncs()
        util._flush_std_streams()  # type: ignore[attr-defined]
        ctypes.CDLL(None).exit(status)
        raise AssertionError("C's exit does not return")

    @override
    def run(self) -> None:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self._environment)
        openmp.read_environment(before)
        end_with_parent()
        super().run()


class _Context(context.ForkServerContext):
    """The context from which vLLM takes processes, locks, pipes and queues."""

    Process = _Process


def _run_in_fork(work: Callable[[], T]) -> T:
    """Run a function in another process and return its result; vLLM inspects model classes there, away from CUDA."""
    import cloudpickle

    if multiprocessing.current_process().daemon:  # It may not have children.
        return _vllms[_REGISTRY, "_run_in_subprocess"](work)
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
            f"the process that inspects a model class ended early ({process.exitcode})"
        ) from None
    process.join()
    if error is not None:
        raise error
    return result


def _send_result(work: bytes, sender: Connection) -> None:
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    try:
        sender.send((pickle.loads(work)(), None))
    except Exception as error:
        sender.send((None, error))
