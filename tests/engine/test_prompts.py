"""Members that read prompts of their own, against plain transformers where each model gets its own prompt."""

from collections.abc import Sequence
from typing import Any

import pytest

from .small_family import POISON, Running
from .test_composite import (
    BASE,
    FILTERED_BY_EXPERT,
    MIXED,
    NEGATIVE,
    SETTINGS,
    UP_SCALED,
    check,
    greedy,
    prompt,
)

pytestmark = pytest.mark.engine

BLOCK = 32


def apart(
    lengths: Sequence[int], coefficients: list[float], count: int = 8, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A greedy request whose members read prompts of these lengths, all different."""
    prompts = [prompt(1000 * seed + member, length) for member, length in enumerate(lengths)]
    return greedy(max(prompts, key=len), coefficients, count, prompts=prompts, **more)


def test_every_member_reads_its_own_prompt(running: Running) -> None:
    check(running, [apart([9, 14, 31, 20], MIXED)])


def test_a_batch_mixes_them_with_ordinary_requests_and_filters(running: Running) -> None:
    requests = [
        apart([9, 40, 3, 20], MIXED, seed=1),
        greedy(prompt(2, 17), UP_SCALED),
        apart([33, 33, 33, 1], NEGATIVE, seed=2),
        apart([5, 6, 50, 7], FILTERED_BY_EXPERT, seed=3),
        greedy(prompt(3, 30), BASE),
        apart([70, 2, 2, 2], UP_SCALED, seed=4),
    ]
    check(running, requests)


def test_chunks_cut_through_the_difference(running: Running) -> None:
    """A step reads at most 64 tokens: some are all before a member's prompt, some begin it, some end it."""
    requests = [
        apart([200, 13, 90, 140], MIXED, 5, seed=5),
        apart([10, 150, 149, 3], NEGATIVE, 5, seed=6),
        greedy(prompt(7, 100), MIXED, 5),
        apart([1, 64, 128, 96], UP_SCALED, 5, seed=8),
    ]
    check(running, requests)


def test_equal_prompts_at_once_do_not_disturb_each_other(running: Running) -> None:
    """What a short member generates goes to blocks that hold the longer prompts."""
    requests = [apart([12, 75, 70, 40], setting, 12, seed=9) for setting in SETTINGS]
    check(running, requests)


def test_n_samples_go_their_own_ways(running: Running) -> None:
    request = apart([12, 75, 70, 40], MIXED, 20, seed=10, temperature=1.0, n=4) | {"seed": 3}
    choices = running.engine.generate([request, greedy(prompt(91, 12), BASE)])[0]["choices"]
    assert len({tuple(choice["tokens"]) for choice in choices}) == 4
    from .test_composite import assert_logprobs

    for choice in choices:
        assert_logprobs(running, request["prompts"], MIXED, choice)


def test_blocks_that_are_the_same_for_all_members_are_read_once(running: Running) -> None:
    first = apart([100, 110, 90, 160], MIXED, 6, seed=11)
    check(running, [first])
    again = first | {"coefficients": UP_SCALED}
    longer = _extended(first, prompt(12, 9))
    outputs = check(running, [again, longer])
    assert [output["cached_tokens"] for output in outputs] == [128, 128]


@pytest.mark.parametrize("member", [0, 2])
def test_a_near_miss_in_any_members_prompt_is_a_miss(running: Running, member: int) -> None:
    first = apart([100, 110, 90, 160], MIXED, 3, seed=13 + member)
    check(running, [first])
    prompts = [list(tokens) for tokens in first["prompts"]]
    prompts[member][0] = (prompts[member][0] + 1) % 90
    near = first | {"prompts": prompts, "prompt": prompts[3]}
    shifted = [tokens[1:] if m == member else tokens for m, tokens in enumerate(first["prompts"])]
    behind = first | {"prompts": shifted, "prompt": shifted[3]}
    ordinary = greedy(first["prompt"], MIXED, 3)
    outputs = check(running, [near, behind, ordinary])
    # A member may begin behind the first block, which is then the same for all.
    assert outputs[0]["cached_tokens"] <= 2 * BLOCK
    assert [output["cached_tokens"] for output in outputs[1:]] == [0, 0]


def test_preempted_requests_resume_with_their_prompts(running: Running) -> None:
    requests = [
        apart([60 - 3 * i, 30 + i, 60, 10 + 5 * i], SETTINGS[i % 5], 14, seed=20 + i) for i in range(10)
    ]
    outputs = check(running, requests)
    assert outputs[0]["metrics"]["vllm:num_preemptions"] > 0


def test_what_another_step_left_in_rows_without_anything_to_read_ends_nobody(running: Running) -> None:
    """A chunk may lie wholly before a member's own prompt; its last row is looked at all the same."""
    poisoned = greedy([POISON] * 100, MIXED, 2)
    assert running.engine.generate([poisoned])[0]["choices"][0]["finish_reason"] == "error"
    check(running, [apart([200, 13, 90, 10], MIXED, 3, seed=40)])


def _extended(request: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    prompts = [[*own, *tokens] for own in request["prompts"]]
    return request | {"prompts": prompts, "prompt": max(prompts, key=len)}
