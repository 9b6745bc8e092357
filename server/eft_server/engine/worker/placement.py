"""Tensor parallelism by member: spread over the ranks, or whole on every one of them.

The base is what a family needs more than one device for; its members are small beside it. A member that is whole
everywhere runs without any communication, and its heads need not divide.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vllm.config import VllmConfig
from vllm.distributed import parallel_state


def placement(sharded: bool) -> AbstractContextManager[None]:
    """Where a member is built, loaded and run: among all ranks, or with this rank on its own.

    vLLM's layers note the size of their group when they are built, but embeddings, experts and the layer that
    gathers logits ask for the group itself each time: so all four of construction, loading, forward and logits
    have to be inside.
    """
    return nullcontext() if sharded else _alone()


def whole(config: VllmConfig) -> VllmConfig:
    """A member's config as if there were no tensor parallelism.

    Its rank stays what it was: each rank keeps a compile cache of its own under it.
    """
    config = copy.copy(config)
    config.parallel_config = copy.copy(config.parallel_config)
    config.parallel_config.tensor_parallel_size = 1
    return config


@contextmanager
def _alone() -> Iterator[None]:
    # Pipeline parallelism is refused, so every rank is the only one in its pipeline group: a ready-made group of one,
    # in which vLLM's collectives return what they are given.
    alone = parallel_state.get_pp_group()
    assert alone.world_size == 1, "pipeline parallelism is refused before vLLM starts"
    # The group of expert parallelism as well: there is none where the base is no mixture of experts.
    everybody = parallel_state._TP, parallel_state._EP
    parallel_state._TP = parallel_state._EP = alone
    try:
        yield
    finally:
        parallel_state._TP, parallel_state._EP = everybody
