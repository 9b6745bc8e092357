"""What the scheduler takes from the prefix cache for a text that is scored; no model runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vllm import AsyncEngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from eft_server.engine.core.scheduler import EftScheduler
from eft_server.engine.message import KEY, Manifest, MemberWeights, Scoring, scoring_params

from .checkpoints import write_checkpoint
from .test_composite import BASE, prompt

BLOCK = 32
CHUNK = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("scheduler") / "base", 0)


def _checkpoint(name: str) -> MemberWeights:
    return MemberWeights(name, "unread")


@pytest.fixture
def scheduler(checkpoint: Path) -> EftScheduler:
    config = AsyncEngineArgs(
        model=str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=BLOCK,
        max_num_batched_tokens=CHUNK,
        hf_overrides={
            KEY: Manifest((), tuple(map(_checkpoint, "rab")), (), (*BASE, *(0.0,) * 6), (8,) * 4).to_hf()
        },
    ).create_engine_config()
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    cache = KVCacheConfig(64, [], [KVCacheGroupSpec(["layer"], spec)])
    config.cache_config.num_gpu_blocks = cache.num_blocks
    init_none_hash(sha256)
    return EftScheduler(config, cache, StructuredOutputManager(config), block_size=BLOCK)


@pytest.fixture
def add(scheduler: EftScheduler) -> Callable[..., Request]:
    def add(name: str, first: int, text: list[int]) -> Request:
        """A text of which what follows its token `first` is scored."""
        params = scoring_params(Scoring(first, tuple(text[first:]), (tuple(BASE),)))
        hasher = get_request_block_hasher(BLOCK, sha256)
        request = Request(name, text, params, None, block_hasher=hasher)
        scheduler.add_request(request)
        return request

    return add


def read_from(scheduler: EftScheduler) -> int:
    """Take a step of its one request, and give the position from which that reads."""
    step = scheduler.schedule()
    [name] = step.num_scheduled_tokens
    scheduler.update_from_output(step, ModelRunnerOutput([name], {name: 0}, [[]]))
    cached = step.scheduled_cached_reqs
    return [*(new.num_computed_tokens for new in step.scheduled_new_reqs), *cached.num_computed_tokens][0]


def test_the_row_of_a_prompts_last_token_is_always_read(
    scheduler: EftScheduler, add: Callable[..., Request]
) -> None:
    text = prompt(600, 200)
    found = []
    for number, first in enumerate((150, 150, 96, 95, 199)):
        request = add(str(number), first, text)
        found.append(read_from(scheduler))
        while request.num_computed_tokens < len(text):
            read_from(scheduler)
        scheduler.finish_requests(str(number), RequestStatus.FINISHED_ABORTED)
    assert found == [0, 128, 96, 64, 128]


def test_what_was_preempted_is_read_again_from_its_beginning(
    scheduler: EftScheduler, add: Callable[..., Request]
) -> None:
    """Its own blocks are in the cache, but a runner that starts over has no rows of them."""
    request = add("a", 40, prompt(601, 200))
    assert [read_from(scheduler) for _ in range(3)] == [0, CHUNK, 2 * CHUNK]
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    assert read_from(scheduler) == 0
