"""Tensor parallelism by member: sharded over the ranks, or replicated on each of them.

Usually only the base needs more than one device; the other members are small. A replicated member runs without
communication, and its number of heads need not be divisible.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vllm.config import VllmConfig
from vllm.distributed import parallel_state


def placement(sharded: bool) -> AbstractContextManager[None]:
    """The context in which a member is built, loaded and run: with all ranks, or with only this one.

    vLLM's layers store the size of their group when they are built, but embeddings, experts and the layer that gathers
    logits look up the group each time: so construction, loading, forward and logits all have to be inside.
    """
    return nullcontext() if sharded else _alone()


def whole(config: VllmConfig) -> VllmConfig:
    """A member's config as if there were no tensor parallelism.

    The rank does not change: each rank has a separate compile cache.
    """
    config = copy.copy(config)
    config.parallel_config = copy.copy(config.parallel_config)
    config.parallel_config.tensor_parallel_size = 1
    return config


@contextmanager
def _alone() -> Iterator[None]:
    # Pipeline parallelism is refused, so every rank is the only one in its pipeline group: a ready-made group of one,
    # in which vLLM's collectives return their input.
    alone = parallel_state.get_pp_group()
    assert alone.world_size == 1, "pipeline parallelism is refused before vLLM starts"
    # Also for expert parallelism, whose group is missing if the base is not a mixture of experts.
    everybody = parallel_state._TP, parallel_state._EP
    parallel_state._TP = parallel_state._EP = alone
    try:
        yield
    finally:
        parallel_state._TP, parallel_state._EP = everybody
