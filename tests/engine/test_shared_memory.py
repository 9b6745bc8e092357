"""How much shared memory an engine's processes need, and what is said where it is too little."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform

from eft_server.engine.launcher.plan import _CPU_EXECUTOR
from eft_server.engine.launcher.shared_memory import queue_bytes, refuse_small_shared_memory
from eft_server.errors import ConfigError

MIB = 1 << 20
OURS = {"distributed_executor_backend": _CPU_EXECUTOR}


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's /dev/shm."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * MIB))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (OURS, []),
        (OURS | {"data_parallel_size": 2}, []),
        ({}, [160, 240]),
        ({"distributed_executor_backend": "mp"}, [160, 240]),
        ({"tensor_parallel_size": 2}, [160, 240, 240]),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2}, [160, 160, 240, 240, 240, 240]),
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}, []),
    ],
)
def test_each_rank_of_a_cpu_engine_has_a_queue_unless_it_runs_in_the_core(
    options: dict[str, Any], expected: list[int]
) -> None:
    assert [size / MIB for size in queue_bytes(options)] == expected


@pytest.mark.usefixtures("on_gpus")
@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0), ({"tensor_parallel_size": 2}, 3), ({"data_parallel_size": 2}, 4)]
)
def test_one_rank_on_a_gpu_has_none(options: dict[str, Any], expected: int) -> None:
    assert len(queue_bytes(options)) == expected


@pytest.mark.usefixtures("container")
def test_several_ranks_are_refused_in_a_container_with_little_and_one_is_not() -> None:
    refuse_small_shared_memory(OURS)
    with pytest.raises(ConfigError, match=r"/dev/shm has 64 MiB free.*--shm-size 640m"):
        refuse_small_shared_memory({"tensor_parallel_size": 2})


def test_what_is_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=640 * MIB))
    refuse_small_shared_memory({"tensor_parallel_size": 2})
