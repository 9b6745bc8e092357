"""Each member has graphs of its own: who is replayed, and that everything is exact all the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import test_composite, test_drafting, test_prompts
from ..driver import Engine
from ..reference import Reference
from ..small_family import Running
from ..test_composite import (
    BASE,
    EXPERT_ALONE,
    FILTERED_BY_BASE,
    MIXED,
    SETTINGS,
    UP_SCALED,
    check,
    greedy,
    prompt,
)
from ..test_prompts import apart
from .modes import graphed

pytestmark = pytest.mark.engine

DEFAULT = "FULL_AND_PIECEWISE"
"""What vLLM does on a GPU unless it is told otherwise."""

PIECES = {"base": 4, "ref": 3, "a": 3, "b": 3}
"""One more than a member has layers of attention."""


@pytest.fixture(scope="module")
def graphs(family: Path, reference: Reference) -> Iterator[Running]:
    """The small family as a GPU would run it."""
    engine = Engine(family, v2=True, graphs=graphed(DEFAULT))
    yield Running(engine, reference, v2=True, speculative=False)
    engine.close()


def replayed(running: Running, *requests: dict[str, object]) -> float:
    """Run requests, hold them against the reference, and count the graphs that were replayed."""
    return float(check(running, requests)[0]["metrics"]["graphs:replayed"])


def test_a_step_replays_the_members_that_its_requests_need_and_no_others(graphs: Running) -> None:
    """One step reads the prompt in pieces; five decode, each with one graph a member."""
    needed = {"base": BASE, "a": EXPERT_ALONE}
    for seed, (name, setting) in enumerate(needed.items()):
        assert replayed(graphs, greedy(prompt(seed, 6), setting, 6)) == PIECES[name] + 5
    up_scaled = PIECES["base"] + PIECES["ref"] + PIECES["a"]
    assert replayed(graphs, greedy(prompt(3, 6), UP_SCALED, 6)) == up_scaled + 5 * 3
    together = [greedy(prompt(4, 6), BASE, 6), greedy(prompt(5, 6), EXPERT_ALONE, 6)]
    assert replayed(graphs, *together) == PIECES["base"] + PIECES["a"] + 5 * 2


def test_requests_with_prompts_of_the_members_own_decode_in_graphs_with_everybody_else(
    graphs: Running,
) -> None:
    """In the step that reads a prompt of a member's own, attention is told by the host; later steps are graphs."""
    own = [apart([9, 14, 31, 20], MIXED, 7, seed=1), apart([12, 3, 3, 3], UP_SCALED, 7, seed=2)]
    ordinary = [greedy(prompt(7, 9), MIXED, 7), greedy(prompt(8, 5), BASE, 7)]
    assert replayed(graphs, *own, *ordinary) >= 6 * 4


@pytest.mark.parametrize(
    "test",
    [
        test_composite.test_members_join_and_leave_a_running_batch,
        test_composite.test_a_member_never_takes_for_read_what_only_others_have_read,
        test_composite.test_preempted_requests_resume_with_their_weights,
        test_composite.test_prompt_logprobs_are_the_composites,
        test_prompts.test_chunks_cut_through_the_difference,
        test_prompts.test_preempted_requests_resume_with_their_prompts,
        test_prompts.test_equal_prompts_at_once_do_not_disturb_each_other,
        test_prompts.test_what_another_step_left_in_rows_without_anything_to_read_ends_nobody,
    ],
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_as_without_graphs(graphs: Running, test: object) -> None:
    test(graphs)  # type: ignore[operator]


@pytest.fixture(scope="module")
def drafting(family: Path, reference: Reference) -> Iterator[Running]:
    """The same, and expert b drafts three tokens at a time."""
    engine = Engine(family, ["speculative={draft: b, tokens: 3}"], v2=True, graphs=graphed(DEFAULT))
    yield Running(engine, reference, v2=True, speculative=True)
    engine.close()


def test_drafts_are_graphs(drafting: Running) -> None:
    """A step verifies four tokens with a graph a member, and drafts three with one each."""
    requests = [greedy(prompt(20 + i, 6 + i), MIXED, 9) for i in range(3)]
    outputs = check(drafting, requests)
    steps = max(output["choices"][0]["drafts"]["proposed"] / 3 for output in outputs)
    assert outputs[0]["metrics"]["graphs:replayed"] >= steps * (4 + 3)


@pytest.mark.parametrize(
    "test",
    [
        test_drafting.test_a_member_agrees_with_its_own_drafts,
        test_drafting.test_a_member_drafts_on_its_own_prompt,
        test_composite.test_filters_and_amplification_equal_the_reference_beside_rows_without,
        test_composite.test_members_join_and_leave_a_running_batch,
        test_composite.test_preempted_requests_resume_with_their_weights,
        test_prompts.test_a_batch_mixes_them_with_ordinary_requests_and_filters,
        test_prompts.test_preempted_requests_resume_with_their_prompts,
    ],
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_with_drafts(drafting: Running, test: object) -> None:
    test(drafting)  # type: ignore[operator]


def test_drafts_beside_prompts_of_the_members_own(drafting: Running) -> None:
    requests = [apart([40, 3, 20, 9 + i], setting, 9, seed=30 + i) for i, setting in enumerate(SETTINGS)]
    check(drafting, [*requests, greedy(prompt(31, 90), FILTERED_BY_BASE, 9)])
