"""OpenMP's settings in a forked process: its library read the environment before they were set."""

import os
import re
from collections.abc import Mapping

__all__ = ["read_environment"]

_GRAIN = 1 << 15
"""Number of elements from which torch uses one more thread."""


def read_environment(before: Mapping[str, str]) -> None:
    """Use the number of threads in OMP_NUM_THREADS, bound to cores as vLLM binds those of its CPU workers.

    Call it before any computation: existing threads are not changed. Intel's library does not need this, since it reads
    its environment again after a fork.

    Args:
        before: The environment that the library read.
    """
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if not threads.isdecimal() or int(threads) < 1:
        return
    import torch

    if "OMP_NUM_THREADS" in changed:
        torch.set_num_threads(int(threads))
    if cores := changed.get("GOMP_CPU_AFFINITY"):
        _bind(int(threads), [{int(core)} for core in re.findall(r"\d+", cores)])
    elif places := changed.get("OMP_PLACES"):
        _bind(
            int(threads), [set(map(int, place.split(","))) for place in re.findall(r"{(\d[\d,]*)}", places)]
        )


def _bind(threads: int, places: list[set[int]]) -> None:
    """Bind each thread of the pool to its place, in turn; the main thread is the first of them."""
    import torch

    if not places:
        return
    known = _threads()
    torch.zeros(threads * _GRAIN).add_(1)
    for index, thread in enumerate([os.getpid(), *sorted(_threads() - known)]):
        os.sched_setaffinity(thread, places[index % len(places)])


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}
