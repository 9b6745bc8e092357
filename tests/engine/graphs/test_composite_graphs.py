"""The composite under emulated graphs against plain transformers."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .. import test_activations, test_composite, test_prompts, test_reports, test_scoring
from ..checkpoints import write_checkpoint
from ..driver import Engine
from ..reference import Reference
from ..small_family import FAMILY, SHARED, Running
from ..test_composite import SETTINGS, check, greedy, prompt
from .modes import PIECEWISE, graphed

pytestmark = pytest.mark.engine


ALLOWED = ["server.activations=true"]
"""Room for activations is measured at the start."""


@pytest.fixture(scope="module", params=["FULL_DECODE_ONLY", "FULL"])
def whole(request: pytest.FixtureRequest, family: Path, reference: Reference) -> Iterator[Running]:
    """The small family, a graph for a step."""
    engine = Engine(family, ALLOWED, v2=True, graphs=graphed(request.param))
    assert engine.facts["graphs"] > 0
    yield Running(engine, reference, v2=True, speculative=False)
    engine.close()


TESTS = [
    test_composite.test_a_batch_that_mixes_weights_equals_the_reference,
    test_composite.test_filters_and_amplification_equal_the_reference_beside_rows_without,
    test_composite.test_prompts_longer_than_a_chunk_equal_the_reference,
    test_composite.test_prefix_cache_hits_bring_tokens_and_not_weights,
    test_composite.test_preempted_requests_resume_with_their_weights,
    test_composite.test_prompt_logprobs_are_the_composites,
    test_composite.test_a_non_finite_request_leaves_nothing_behind_in_the_cache,
    test_composite.test_a_non_finite_request_fails_alone,
    test_prompts.test_chunks_cut_through_the_difference,
    test_reports.test_a_mixed_batch_reports_on_those_that_ask,
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__.removeprefix("test_"))
def test_in_graphs_of_whole_steps(whole: Running, test: object) -> None:
    test(whole)  # type: ignore[operator]


def test_scores_in_graphs_of_whole_steps(whole: Running) -> None:
    test_scoring.check_scores(whole, [test_scoring.score(prompt(9, 70), prompt(10, 9))])


def test_activations_beside_graphs_of_whole_steps(whole: Running) -> None:
    check_activations(whole)


def check_activations(running: Running) -> None:
    """Members that are asked for run in Python; before and after, and other members beside them, in graphs."""
    test_activations.test_every_state_is_the_references_in_batches_that_mix_requests(running, "residual")
    test_activations.test_members_prompts_chunks_and_the_prefix_cache_change_nothing(running, "mean")
    test_activations.test_nothing_is_left_of_requests_that_have_ended_or_were_given_up(running)
    outputs = check(running, [greedy(prompt(220 + i, 6), setting, 5) for i, setting in enumerate(SETTINGS)])
    assert outputs[0]["metrics"]["graphs:replayed"] >= 4


def test_decoding_replays(whole: Running) -> None:
    outputs = check(whole, [greedy(prompt(200 + i, 6), setting, 5) for i, setting in enumerate(SETTINGS)])
    assert outputs[0]["metrics"]["graphs:replayed"] >= 4


@pytest.mark.parametrize("mode", PIECEWISE)
def test_members_of_one_shape_keep_their_hidden_states(tmp_path: Path, mode: str) -> None:
    """The last piece of each member gives its memory back to the pool, and the next member's graphs take it."""
    names = ("base", "ref", "a", "b")
    for seed, name in enumerate(names):
        write_checkpoint(tmp_path / name, seed)
    (tmp_path / "family.yaml").write_text(FAMILY)
    reference = Reference([tmp_path / name for name in names], vocab_size=96, shared=SHARED)
    with closing(Engine(tmp_path / "family.yaml", v2=True, graphs=graphed(mode))) as engine:
        outputs = engine.generate([greedy(prompt(1, 9), setting, 1) for setting in SETTINGS])
        assert outputs[0]["metrics"]["graphs:replayed"] >= 4 * 3, "three pieces of each member"
        running = Running(engine, reference, v2=True, speculative=False)
        test_composite.test_a_batch_that_mixes_weights_equals_the_reference(running)


@pytest.mark.parametrize("mode", PIECEWISE)
def test_in_graphs_of_pieces(family: Path, reference: Reference, mode: str) -> None:
    """The small family, whose reference has fewer ids than the base: clamped, they need one address for good."""
    with closing(Engine(family, ALLOWED, v2=True, graphs=graphed(mode))) as engine:
        running = Running(engine, reference, v2=True, speculative=False)
        for test in TESTS:
            test(running)
        check_activations(running)
