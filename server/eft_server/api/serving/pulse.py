"""Whether the engine lives: its processes run, and its core and workers answer.

vLLM notices a process that ends, and a step that takes longer than VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS. It does not
notice one that is stopped, such as by SIGSTOP, or one that hangs while there is nothing to do.
"""

import asyncio
import time
from contextlib import suppress

import psutil
from vllm import envs
from vllm.engine.protocol import EngineClient

__all__ = ["Pulse"]

_FORK_SERVER = "EFT::ForkServer"
_FORK_MODULE = "multiprocessing.forkserver"
_BEAT_S = 5.0
_STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})
_ENDED = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


class Pulse:
    """The state of one engine, from looking at its processes and from a beat that goes through its core to its workers.

    Args:
        engine: A running engine, whose processes descend from this one, unless they run on other machines.
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._processes = _engine_processes()
        self._sent_s: float | None = None
        self._heard_s = time.monotonic()

    def heard(self) -> None:
        """Note that the engine has just given something, so that it need not be asked."""
        self._heard_s = time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether the engine says itself that it has stopped."""
        return bool(self._engine.errored)

    def problem(self) -> str | None:
        """Why the engine cannot be used, in words; None while it lives. Costs a look at each of its processes."""
        if self.has_ended:
            return "the engine has stopped"
        for process in self._processes:
            if fault := _fault_of(process):
                return f"the engine's process {process.pid} {fault}"
        if self._sent_s is not None:
            silent_s = time.monotonic() - max(self._sent_s, self._heard_s)
            if silent_s > envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS:
                return f"the engine has not answered for {silent_s:.0f} s"
        return None

    async def beat(self) -> None:
        """Ask the core and its workers for a sign of life again and again, unless others hear from them anyway.

        A step may take long, so an answer is waited for as long as vLLM waits for a step.
        """
        while True:
            await asyncio.sleep(_BEAT_S)
            if time.monotonic() - self._heard_s < _BEAT_S:
                continue
            self._sent_s = time.monotonic()
            with suppress(Exception):  # Then the engine has an error, which `problem` sees.
                await self._engine.collective_rpc("check_health")
                self.heard()
            self._sent_s = None

    def kill(self) -> None:
        """Kill the engine's processes: those that are stopped do not end otherwise."""
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _engine_processes() -> list[psutil.Process]:
    """The processes that vLLM has given a title, below this one or its fork server; other programs have their own."""
    title = f"{envs.VLLM_PROCESS_NAME_PREFIX}::"
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name().startswith((title, _FORK_SERVER)) or _FORK_MODULE in " ".join(child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return [process for process in found if _is_titled(process, title)]


def _is_titled(process: psutil.Process, title: str) -> bool:
    with suppress(psutil.Error):
        return bool(process.name().startswith(title))
    return False


def _fault_of(process: psutil.Process) -> str | None:
    try:
        status = process.status()
    except psutil.NoSuchProcess:
        return "has ended"
    except psutil.AccessDenied:
        return None
    if status in _ENDED:
        return "has ended"
    return "is stopped" if status in _STOPPED else None
