"""Shared memory between an engine's processes: vLLM finds out that there is too little only after loading members."""

import inspect
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from eft_server.errors import ConfigError

__all__ = ["queue_bytes", "refuse_small_shared_memory"]

_MIB = 1 << 20


def refuse_small_shared_memory(options: Mapping[str, Any]) -> None:
    """Check that vLLM's largest queue has room in /dev/shm: Docker gives a container 64 MB of it unless told otherwise.

    Raises:
        ConfigError: It has not; the message says how much an engine with these options needs.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SHM_PATH

    queues = queue_bytes(options)
    if not queues or not os.path.isdir(SHM_PATH):
        return
    free = shutil.disk_usage(SHM_PATH).free
    if free < max(queues):
        needed = math.ceil(sum(queues) / _MIB)
        raise ConfigError(
            f"{SHM_PATH} has {free // _MIB} MiB free, but the ranks of this engine exchange their steps through "
            f"{needed} MiB of shared memory: give the container more, as by docker run --shm-size {needed}m"
        )


def queue_bytes(options: Mapping[str, Any]) -> Sequence[int]:
    """Bytes of each queue between an engine's processes on this machine; none if a rank runs in its core's process.

    Args:
        options: vLLM's options.
    """
    from vllm import envs
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
    from vllm.platforms import current_platform

    ranks, replicas = (int(options.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "data"))
    # vLLM's CPU platform starts a worker for one rank, too.
    has_workers = ranks * replicas > 1 or (current_platform.is_cpu() and envs.VLLM_ENABLE_V1_MULTIPROCESSING)
    backend = options.get("distributed_executor_backend") or ("mp" if has_workers else "uni")
    if backend != "mp":
        return []
    sizes = inspect.signature(MessageQueue.__init__).parameters
    chunks = sizes["max_chunks"].default
    to_ranks = envs.VLLM_MQ_MAX_CHUNK_BYTES_MB * _MIB * chunks
    from_rank = sizes["max_chunk_bytes"].default * chunks
    return [*[to_ranks] * replicas, *[from_rank] * (ranks * replicas)]
