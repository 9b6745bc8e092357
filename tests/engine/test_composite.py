"""The composite against plain transformers in float32, on both model runners, with and without speculation."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from .driver import PLAIN, Engine
from .reference import Text, continued
from .small_family import POISON, SHARED, Running

pytestmark = pytest.mark.engine

BASE = [1.0, 0.0, 0.0, 0.0]
UP_SCALED = [1.0, -1.0, 1.0, 0.0]
MIXED = [1.0, -1.5, 0.9, 0.6]
NEGATIVE = [1.0, 0.4, -0.7, 0.3]
EXPERT_ALONE = [0.0, 0.0, 1.0, 0.0]
FILTERED_BY_EXPERT = [0.0, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0, 0.6]
FILTERED_BY_BASE = [*MIXED, 0.0, 0.0, 0.0, 0.0, 2.0, 0.5]
AMPLIFIED = [0.5, -0.5, 0.7, 0.3]
SETTINGS = [BASE, UP_SCALED, MIXED, NEGATIVE, EXPERT_ALONE]

TOLERANCE = 1e-3


def prompt(seed: int, length: int) -> list[int]:
    """Ordinary tokens."""
    return random.Random(seed).choices(range(90), k=length)


def greedy(
    prompt_tokens: list[int], coefficients: list[float], count: int = 10, **more: Any
) -> dict[str, Any]:
    """A request for greedy decoding with log-probabilities."""
    options = {"temperature": 0.0, "max_tokens": count, "ignore_eos": True, "logprobs": 3} | more
    return {"prompt": prompt_tokens, "coefficients": coefficients, **options}


def check(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run greedy requests in one batch; their tokens and log-probabilities must be the reference's."""
    outputs = running.engine.generate(requests)
    for request, output in zip(requests, outputs, strict=True):
        text, coefficients = request.get("prompts", request["prompt"]), request["coefficients"]
        choice = output["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["tokens"] == running.reference.greedy(text, coefficients, len(choice["tokens"]))
        assert_logprobs(running, text, coefficients, choice)
    return outputs


def assert_logprobs(running: Running, text: Text, coefficients: list[float], choice: dict[str, Any]) -> None:
    """Every reported log-probability of every generated position is the reference's."""
    count = len(choice["tokens"])
    read = continued(text, choice["tokens"][:-1])
    expected = running.reference.logprobs(read, coefficients)[-count:]
    for row, reported in zip(expected, choice["logprobs"], strict=True):
        for token, value in reported.items():
            assert value == pytest.approx(float(row[int(token)]), abs=TOLERANCE)


def test_the_engine_runs_the_model_runner_that_is_asked_for(running: Running) -> None:
    expected = "v2.runner.EftRunner" if running.v2 else "v1.runner.EftCPUModelRunner"
    assert expected in running.engine.facts["runner"]


def test_a_batch_that_mixes_weights_equals_the_reference(running: Running) -> None:
    check(running, [greedy(prompt(index, 5 + 3 * index), setting) for index, setting in enumerate(SETTINGS)])


def test_filters_and_amplification_equal_the_reference_beside_rows_without(running: Running) -> None:
    settings = [FILTERED_BY_EXPERT, BASE, FILTERED_BY_BASE, MIXED, AMPLIFIED, EXPERT_ALONE]
    requests = [greedy(prompt(170 + i, 6 + 25 * i), setting, 6) for i, setting in enumerate(settings)]
    check(running, requests)
    unfiltered = running.reference.greedy(requests[0]["prompt"], UP_SCALED, 6)
    assert running.reference.greedy(requests[0]["prompt"], FILTERED_BY_EXPERT, 6) != unfiltered


def test_prompts_longer_than_a_chunk_equal_the_reference(running: Running) -> None:
    lengths = [150, 9, 200, 70]
    check(running, [greedy(prompt(20 + i, n), SETTINGS[i], 6) for i, n in enumerate(lengths)])


def test_prefix_cache_hits_bring_tokens_and_not_weights(running: Running) -> None:
    shared = prompt(40, 80)
    check(running, [greedy(shared, MIXED, 4)])
    outputs = check(
        running, [greedy(shared + prompt(41 + i, 4), setting, 4) for i, setting in enumerate(SETTINGS)]
    )
    assert all(output["cached_tokens"] >= 64 for output in outputs)


def test_a_member_never_takes_for_read_what_only_others_have_read(running: Running) -> None:
    """A block serves whoever needs no more members than have read it; until then each set reads for itself."""
    shared = prompt(240, 70)
    needed = [BASE, EXPERT_ALONE, UP_SCALED, BASE, EXPERT_ALONE, MIXED, NEGATIVE, UP_SCALED]
    outputs = [check(running, [greedy(shared, setting, 3)])[0] for setting in needed]
    found = [output["cached_tokens"] for output in outputs]
    # Where b drafts it is needed, and has read, everywhere.
    assert found == [0, 0, 0, 64, 64, 64 if running.speculative else 0, 64, 64]


def test_members_join_and_leave_a_running_batch(running: Running) -> None:
    """Every request needs others, their prompts are of one chunk or several, and each ends when it likes."""
    single = [[1.0 if place == member else 0.0 for place in range(4)] for member in range(4)]
    settings = [*single, UP_SCALED, MIXED, FILTERED_BY_EXPERT, FILTERED_BY_BASE]
    check(
        running,
        [greedy(prompt(250 + i, 4 + 37 * (i % 4)), setting, 3 + i) for i, setting in enumerate(settings)],
    )


def test_preempted_requests_resume_with_their_weights(running: Running) -> None:
    # Ten times two blocks fit in the cache, ten times three do not.
    requests = [greedy(prompt(60 + i, 60), SETTINGS[i % len(SETTINGS)], 14) for i in range(10)]
    outputs = check(running, requests)
    assert outputs[0]["metrics"]["vllm:num_preemptions"] > 0


def test_prompt_logprobs_are_the_composites(running: Running) -> None:
    requests = [
        greedy(prompt(80 + i, 70), setting, 2, prompt_logprobs=2) for i, setting in enumerate(SETTINGS)
    ]
    for request, output in zip(requests, check(running, requests), strict=True):
        expected = running.reference.logprobs(request["prompt"], request["coefficients"])
        assert output["prompt_logprobs"][0] is None
        for position, reported in enumerate(output["prompt_logprobs"][1:]):
            for token, value in reported.items():
                assert value == pytest.approx(float(expected[position, int(token)]), abs=TOLERANCE)


def test_n_samples_share_a_prompt_and_its_weights(running: Running) -> None:
    request = greedy(prompt(90, 12), MIXED, 6, temperature=0.8, n=4, seed=3)
    choices = running.engine.generate([request, greedy(prompt(91, 12), BASE)])[0]["choices"]
    assert len(choices) == 4
    assert len({tuple(choice["tokens"]) for choice in choices}) > 1
    for choice in choices:
        assert_logprobs(running, request["prompt"], MIXED, choice)


def test_stop_strings_end_a_request(running: Running) -> None:
    tokens = prompt(96, 10)
    expected = running.reference.greedy(tokens, MIXED, 8)
    assert max(expected) < 90, "special tokens leave no text"
    stop = "".join(chr(33 + token) for token in expected[3:5])
    choice = running.engine.generate([greedy(tokens, MIXED, 20, stop=[stop])])[0]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == "".join(chr(33 + token) for token in expected[:3])


def test_ids_that_not_all_members_share_are_never_sampled(running: Running) -> None:
    requests = [greedy(prompt(100 + i, 6), UP_SCALED, 8, temperature=2.0, seed=i, n=4) for i in range(4)]
    sampled = [
        token
        for output in running.engine.generate(requests)
        for choice in output["choices"]
        for token in choice["tokens"]
    ]
    assert len(sampled) == 128
    assert max(sampled) < SHARED


def test_a_non_finite_request_leaves_nothing_behind_in_the_cache(running: Running) -> None:
    """Its blocks go to others, with what its broken member has written."""
    poisoned = [greedy([POISON] * 100 + prompt(114 + i, 3), MIXED, 2) for i in range(6)]
    assert {output["choices"][0]["finish_reason"] for output in running.engine.generate(poisoned)} == {
        "error"
    }
    check(running, [greedy(prompt(124 + i, 40 + i), MIXED, 3) for i in range(12)])


def test_a_non_finite_request_fails_alone(running: Running) -> None:
    poisoned = [*prompt(110, 8), POISON, *prompt(111, 3)]
    neighbours = [greedy(prompt(112, 9), MIXED), greedy(poisoned, UP_SCALED), greedy(prompt(113, 70), BASE)]
    alone = [running.engine.generate([request])[0]["choices"] for request in neighbours]
    outputs = running.engine.generate([neighbours[0], greedy(poisoned, MIXED), *neighbours[1:]])
    assert outputs[1]["choices"][0]["finish_reason"] == "error"
    assert outputs[1]["choices"][0]["tokens"] == []
    assert [output["choices"][0]["tokens"] for output in (outputs[0], *outputs[2:])] == [
        choices[0]["tokens"] for choices in alone
    ]


@pytest.mark.parametrize("coefficients", [[1.0, 0.0], [1.0, -1.0, 1.0, "x"], 3.0])
def test_malformed_coefficients_fail_the_request_and_not_the_engine(
    running: Running, coefficients: Any
) -> None:
    output = running.engine.generate([greedy(prompt(120, 5), coefficients), greedy(prompt(121, 5), BASE, 3)])
    assert output[0]["choices"][0]["finish_reason"] == "error"
    assert output[1]["choices"][0]["finish_reason"] == "length"


def test_a_request_without_coefficients_fails_and_never_gets_the_defaults(running: Running) -> None:
    request = greedy(prompt(130, 9), BASE)
    neighbour = greedy(prompt(131, 9), [1.0, -1.0, 0.5, 0.5])
    expected = check(running, [neighbour])[0]["choices"][0]["tokens"]
    del request["coefficients"]
    failed, lived = running.engine.generate([request, neighbour])
    assert failed["choices"][0]["finish_reason"] == "error"
    assert lived["choices"][0]["tokens"] == expected


def test_seeded_requests_with_long_prompts_live_and_repeat(running: Running) -> None:
    """VLLM 0.32's CPU engine dies of a seeded request whose prompt is read in parts."""
    requests = [greedy(prompt(140 + i, 150), MIXED, 5, temperature=1.0, seed=i) for i in range(3)]
    together = [output["choices"][0]["tokens"] for output in running.engine.generate(requests)]
    alone = [running.engine.generate([request])[0]["choices"][0]["tokens"] for request in requests]
    assert together == alone


OWN_PROMPTS = [prompt(151 + member, length) for member, length in enumerate((6, 3, 9, 7))]


@pytest.mark.parametrize(
    ("text", "vector", "wrong"),
    [
        (prompt(150, 6), MIXED, [1.0, -1.2, 0.9, 0.3]),
        (prompt(150, 6), [1.0, -1.0, 0.2, 0.8], [1.0, -1.0, 0.8, 0.2]),
        (prompt(150, 6), FILTERED_BY_EXPERT, UP_SCALED),
        (prompt(150, 6), FILTERED_BY_BASE, MIXED),
        (OWN_PROMPTS, MIXED, UP_SCALED),
    ],
    ids=["mixed", "lambda 0.2", "expert filter", "base filter", "own prompts"],
)
def test_samples_follow_the_composites_distribution(
    running: Running, text: Text, vector: list[float], wrong: list[float]
) -> None:
    """Chi-square of the second token (under speculation the first that may be drafted); a wrong blend fails it."""
    count = 128 if running.v2 else 1024
    own = isinstance(text[0], list)
    request = greedy(
        max(text, key=len) if own else text, vector, 3, temperature=1.0, seed=11, n=count, logprobs=None
    )
    request |= {"prompts": text} if own else {}
    choices = running.engine.generate([request])[0]["choices"]
    sampled = np.array([choice["tokens"][1] for choice in choices])
    assert p_value(sampled, second_token(running, text, vector)) > 1e-3
    assert p_value(sampled, second_token(running, text, wrong)) < 1e-6


def second_token(running: Running, text: Text, coefficients: list[float]) -> np.ndarray:
    """The exact distribution of the second generated token."""
    first = running.reference.logprobs(text, coefficients)[-1].exp()
    total = np.zeros(len(first))
    for token, probability in enumerate(first.tolist()):
        if probability > 1e-9:
            row = running.reference.logprobs(continued(text, [token]), coefficients)[-1]
            total += probability * row.exp().double().numpy()
    return total / total.sum()


def p_value(sampled: np.ndarray, probabilities: np.ndarray) -> float:
    """Of Pearson's test, after pooling the tokens that are expected fewer than five times."""
    observed = np.bincount(sampled, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(sampled)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    return float(
        stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue
    )


@pytest.mark.parametrize("running", ["v1"], indirect=True)
def test_zero_weights_equal_plain_vllm_to_the_last_bit(running: Running, family: Path) -> None:
    """The base's rows are what they would be if the other members were not there.

    One request at a time: which requests meet in a step is a matter of timing, and of the last bits.
    """
    requests = [
        greedy(prompt(160 + i, 5 + 30 * i), BASE, 12, prompt_logprobs=5, logprobs=5) for i in range(4)
    ]
    composite = [running.engine.generate([request])[0] for request in requests]
    alone = Engine(family.parent / "base", [PLAIN])
    plain = [
        alone.generate([{k: v for k, v in request.items() if k != "coefficients"}])[0] for request in requests
    ]
    alone.close()
    for ours, theirs in zip(composite, plain, strict=True):
        assert ours["choices"] == theirs["choices"]
        assert ours["prompt_logprobs"] == theirs["prompt_logprobs"]
