"""Where an engine's processes come from: a fork server that has imported what they need.

An engine is two processes or more, and importing vLLM takes each of them longer than everything else in a start. So
the program imports it once and leaves a copy of itself behind, from which the others are forked:
`multiprocessing`'s fork server, only that it is forked too, where `multiprocessing` would start it afresh. That copy
is made before there are threads, OpenMP's pools or CUDA contexts, which do not survive a fork, and does nothing but
fork. A program that has such things already gets `multiprocessing`'s own fork server, which imports everything
once more, at the same time as the program.

The operator's VLLM_WORKER_MULTIPROC_METHOD ("spawn" or "fork") leaves it all to vLLM, and so does what vLLM knows to
rule a fork out: Ray's actors, and Windows' Linux.
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
"""The modules of vLLM's that start processes; each has imported `get_mp_context` by name."""

_REGISTRY = "vllm.model_executor.models.registry"

_vllms: dict[tuple[str, str], Any] = {}
"""What vLLM has at the names that are overwritten, by module and name."""

_server = forkserver.ForkServer()
_launching = threading.Lock()

_is_clean: bool | None = None
"""Whether nothing but this package's imports had happened in this process when it imported the engine."""


def start() -> None:
    """Import the engine, and start the server that its processes will be forked from; a second call does nothing.

    To be called as early in a program as can be. The server ends with the last of the processes that know of it.

    Raises:
        ConfigError: Another vLLM is installed than the one that this package is tested with.
    """
    if is_running():
        return
    require_tested_vllm()
    if os.environ.get(_VLLMS_OWN):
        import_engine()
        return
    with suppress(OSError):  # A folder for temporary files whose path is too long for a socket.
        if _start():
            _take_over()


def _start() -> bool:
    if _can_fork():
        inherited = _descriptors()
        import_engine()
        # If an import set CUDA up, the server's would do so, too.
        if _vllm_would_spawn() or _cuda_is_initialised() or threading.active_count() > 1:
            return False
        _fork_server(inherited)
    else:
        _server.set_forkserver_preload(["eft_server.engine.launcher.preload"])
        _server.ensure_running()
        import_engine()
    return not _vllm_would_spawn()


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
    quieten_imports()
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
    return "torch" not in sys.modules and len(os.listdir("/proc/self/task")) == 1


def _vllm_would_spawn() -> bool:
    from vllm.platforms.interface import in_wsl
    from vllm.ray.lazy_utils import is_in_ray_actor

    return bool(in_wsl() or is_in_ray_actor())


def _cuda_is_initialised() -> bool:
    """Whether the driver was set up in this process, by torch or anybody else; asking does not do it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    not_initialised = 3
    return bool(driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != not_initialised)


def _descriptors() -> set[int]:
    """What is open, without what the looking opens."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


def _fork_server(inherited: Iterable[int]) -> None:
    """Have multiprocessing start its fork server, and fork where it would run a new interpreter."""
    resource_tracker.ensure_running()  # A new interpreter, as the fork server would be.
    util._flush_std_streams()  # type: ignore[attr-defined]  # What is in a buffer would be written by each process.
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

    _server.set_forkserver_preload([])
    spawn, util.spawnv_passfds = util.spawnv_passfds, fork  # type: ignore[assignment]
    try:
        _server.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def _serve(program: str, others: Iterable[int]) -> None:
    """The server's side of the fork: run multiprocessing's program for it, and never return.

    Args:
        program: What would be given to `python -c`.
        others: Descriptors that a new interpreter would not have.
    """
    status = 1
    try:
        for descriptor in others:
            with suppress(OSError):  # What was closed meanwhile.
                os.close(descriptor)
        _forget_the_program()
        gc.freeze()  # What is there for good stays where it is, in memory that all processes share.
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
    """What a new interpreter would not have: handlers of signals, what is to be done at the end, and a title."""
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
    """Let the processes that come from here use this server, too; multiprocessing's would start one each.

    A terminal's Ctrl-C is for the program alone, which stops them or does not: they are another process group. They are
    not another session: to those, Linux gives equal shares of the cores, however many processes compute in each.
    """
    global _server  # noqa: PLW0603 (it is the process's)
    os.setpgid(0, 0)
    _take_over()
    # It notes in its own module where it listens.
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
    """Asks this module's server for a process; the program's own use of multiprocessing's is left alone."""

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
    """A process that has the environment of the one that starts it, as if it were a new interpreter."""

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
        """Do the process's work, then end it as an interpreter ends: some things are put away by C's exit alone."""
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
    """What vLLM takes its processes, locks, pipes and queues from."""

    Process = _Process


def _run_in_fork(work: Callable[[], T]) -> T:
    """Run a function elsewhere, for its result: vLLM looks into model classes so, lest they set up CUDA here."""
    import cloudpickle

    if multiprocessing.current_process().daemon:  # It may have no processes of multiprocessing's.
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
            f"the process that was to look into a model class ended ({process.exitcode})"
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
