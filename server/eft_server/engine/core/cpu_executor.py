"""Runs the only rank of a CPU engine inside the engine core, as vLLM does on GPUs: one process and two queues less."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from typing_extensions import override
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from eft_server.engine.launcher import openmp

__all__ = ["CPUExecutor"]


class CPUExecutor(UniProcExecutor):
    """vLLM's executor for one process, with the OpenMP threads that vLLM gives to a CPU worker.

    vLLM's CPU platform starts a worker for one rank, too, because OpenMP reads its environment as a process starts.
    """

    _cores: set[int]
    """Where the calling thread computes: OpenMP counts it among its threads."""

    @override
    def _init_executor(self) -> None:
        before = dict(os.environ)
        self._cores = os.sched_getaffinity(0)
        with OMPProcessManager(self.vllm_config).configure_omp_envs(rank=0, local_rank=0), self._computing():
            openmp.read_environment(before)
            super()._init_executor()

    @override
    def collective_rpc(self, *args: Any, **options: Any) -> Any:
        """As in vLLM, on the core that the calling thread's share of the work is bound to."""
        with self._computing():
            return super().collective_rpc(*args, **options)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Bind the calling thread only meanwhile: the engine core's other threads would inherit the one core."""
        anywhere = os.sched_getaffinity(0)
        _bind(self._cores)
        try:
            yield
        finally:
            self._cores = os.sched_getaffinity(0)
            _bind(anywhere)


def _bind(cores: set[int]) -> None:
    """Bind the calling thread, unless none of these cores is left to this process: a container's may change."""
    with suppress(OSError):
        os.sched_setaffinity(0, cores)
