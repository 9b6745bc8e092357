"""Rows that are explained, against plain transformers, on both model runners."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from .reference import Text, continued, nucleus
from .small_family import POISON, SHARED, Running
from .test_composite import (
    AMPLIFIED,
    BASE,
    EXPERT_ALONE,
    FILTERED_BY_BASE,
    FILTERED_BY_EXPERT,
    MIXED,
    NEGATIVE,
    TOLERANCE,
    UP_SCALED,
    greedy,
    prompt,
)
from .test_scoring import B_ALONE, OWN, REFERENCE_ALONE, assert_scored, score

pytestmark = pytest.mark.engine

ALONE = [BASE, REFERENCE_ALONE, EXPERT_ALONE, B_ALONE]
LIKELY = 6


def explain(
    text: Text, targets: Sequence[int], vector: list[float], likely: int = LIKELY, **sampling: float
) -> dict[str, Any]:
    """A request to explain these tokens: under a vector, every member, and the vector without one expert."""
    request = score(text, targets, [vector, *ALONE, UP_SCALED])
    request["scoring"]["explaining"] = {
        "likely": likely,
        "leading": 1 + len(ALONE),
        "base": 1,
        "filtered": len(vector) > len(ALONE),
        **sampling,
    }
    return request


def run(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests to explain in one batch; every number must be the reference's."""
    outputs = running.engine.generate(
        [{k: v for k, v in request.items() if k != "text"} for request in requests]
    )
    for request, output in zip(requests, outputs, strict=True):
        if "scoring" in request:
            assert_explained(running, request, output)
    return outputs


def assert_explained(running: Running, request: dict[str, Any], output: dict[str, Any]) -> None:
    scoring = request["scoring"]
    for vector, found in zip(scoring["vectors"], output["scored"], strict=True):
        assert_scored(running, request["text"], scoring["targets"], vector, found)
        rows = rows_of(running, request, vector)
        values = rows.gather(-1, torch.tensor(found["likeliest_ids"]).unsqueeze(-1)).squeeze(-1)
        assert values.tolist() == pytest.approx(rows.amax(-1).tolist(), abs=TOLERANCE)
    explained = output["explained"]
    own, base = rows_of(running, request, scoring["vectors"][0]), rows_of(running, request, BASE)
    ids = torch.tensor(explained["ids_CN"]).reshape(len(own), -1)
    assert ids.shape == (len(own), scoring["explaining"]["likely"])
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    likeliest = own.sort(dim=-1, descending=True).values[:, : ids.shape[1]]
    torch.testing.assert_close(own.gather(-1, ids), likeliest, atol=TOLERANCE, rtol=0)
    for vector, found in zip(scoring["vectors"], explained["logprobs_LCN"], strict=False):
        expected = rows_of(running, request, vector).gather(-1, ids)
        torch.testing.assert_close(torch.tensor(found).reshape(ids.shape), expected, atol=TOLERANCE, rtol=0)
    assert explained["entropy_C"] == pytest.approx(torch.special.entr(own.exp()).sum(-1).tolist(), abs=1e-3)
    ratio = torch.where(own.isinf(), 0.0, own.exp() * (own - base)).sum(-1)
    assert explained["divergence_C"] == pytest.approx(ratio.tolist(), abs=1e-3)
    assert all(value >= 0 for value in explained["divergence_C"])
    with_target = torch.cat([torch.tensor(scoring["targets"]).unsqueeze(-1), ids], dim=-1)
    assert_filter(running, request, explained, with_target)
    assert_sampled(request, explained, own, with_target)


def rows_of(running: Running, request: dict[str, Any], vector: Sequence[float]) -> torch.Tensor:
    targets = request["scoring"]["targets"]
    return running.reference.logprobs(continued(request["text"], targets[:-1]), vector)[-len(targets) :]


def assert_filter(
    running: Running, request: dict[str, Any], explained: dict[str, Any], with_target: torch.Tensor
) -> None:
    scoring = request["scoring"]
    if not scoring["explaining"]["filtered"]:
        assert explained["filter_CN1"] is None
        return
    vector = scoring["vectors"][0]
    judge = rows_of(running, request, BASE if vector[-2] == 2 else vector[:4])
    outside = torch.stack([~nucleus(row.tolist(), vector[-1]) for row in judge])
    if vector[-2] == 2:
        taken = torch.where(outside, -torch.inf, 0.0)
    else:
        base, reference = (rows_of(running, request, alone) for alone in (BASE, REFERENCE_ALONE))
        shared = base[:, :SHARED].logsumexp(-1, keepdim=True)  # The filter compares shared ids.
        taken = torch.where(outside, -(base - shared - reference), 0.0)
    expected, found = taken.gather(-1, with_target), torch.tensor(explained["filter_CN1"])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def assert_sampled(
    request: dict[str, Any], explained: dict[str, Any], own: torch.Tensor, with_target: torch.Tensor
) -> None:
    asked = request["scoring"]["explaining"]
    if not {"temperature", "top_p", "top_k", "min_p"} & asked.keys():
        assert explained["sampled_CN1"] is None
        return
    expected = torch.stack([_sampled(row, asked) for row in own]).gather(-1, with_target)
    torch.testing.assert_close(torch.tensor(explained["sampled_CN1"]), expected, atol=2 * TOLERANCE, rtol=0)


def _sampled(row: torch.Tensor, asked: dict[str, float]) -> torch.Tensor:
    """One row after temperature, min_p, top_k and top_p, each by its definition."""
    if asked.get("temperature") == 0:
        return torch.where(row == row.max(), 0.0, -torch.inf)
    row = (row / asked.get("temperature", 1)).log_softmax(-1)
    row = torch.where(row.exp() < asked.get("min_p", 0) * row.exp().max(), -torch.inf, row)
    if asked.get("top_k"):
        row = torch.where(row < row.sort(descending=True).values[asked["top_k"] - 1], -torch.inf, row)
    if asked.get("top_p", 1) < 1:
        row = torch.where(nucleus(row.tolist(), asked["top_p"]), row, -torch.inf)
    return row.log_softmax(-1)


def test_every_number_is_the_references_in_batches_that_mix_settings(running: Running) -> None:
    requests = [
        explain(prompt(600, 9), prompt(601, 12), MIXED),
        explain(prompt(602, 1), prompt(603, 1), BASE),
        explain(prompt(604, 20), prompt(605, 7), FILTERED_BY_EXPERT),
        explain(prompt(606, 20), prompt(607, 7), FILTERED_BY_BASE),
        explain(prompt(608, 11), prompt(609, 5), NEGATIVE, likely=0),
        explain(prompt(610, 11), prompt(611, 5), AMPLIFIED, likely=20),
        greedy(prompt(614, 5), MIXED, 6),
    ]
    outputs = run(running, requests)
    assert outputs[-1]["choices"][0]["tokens"] == running.reference.greedy(prompt(614, 5), MIXED, 6)
    removed = [value for row in outputs[3]["explained"]["filter_CN1"] for value in row]
    assert -math.inf in removed and 0.0 in removed


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.5},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"top_k": 3},
        {"min_p": 0.4},
        {"temperature": 1.7, "top_p": 0.8, "top_k": 9, "min_p": 0.05},
    ],
    ids=str,
)
def test_what_would_be_sampled_is_told_apart_from_the_raw_distribution(
    running: Running, sampling: dict[str, float]
) -> None:
    requests = [
        explain(prompt(620, 9), prompt(621, 8), vector, **sampling)
        for vector in (MIXED, FILTERED_BY_BASE, BASE)
    ]
    run(running, requests)


def test_members_prompts_chunks_and_the_prefix_cache_change_nothing(running: Running) -> None:
    texts = [[prompt(630 + 10 * i + m, n) for m, n in enumerate(lengths)] for i, lengths in enumerate(OWN)]
    requests = [
        *(explain(text, prompt(650 + i, 30), MIXED) for i, text in enumerate(texts)),
        explain(prompt(660, 150), prompt(661, 90), UP_SCALED),
    ]
    first, again = run(running, requests), run(running, requests)
    assert again[3]["cached_tokens"] >= 96 > first[3]["cached_tokens"]


def test_a_row_that_is_not_finite_is_nan_and_disturbs_nobody(running: Running) -> None:
    broken = explain([POISON, *prompt(670, 5)], prompt(671, 4), UP_SCALED)
    fine = explain(prompt(672, 9), prompt(673, 4), MIXED)
    requests = [{k: v for k, v in request.items() if k != "text"} for request in (broken, fine)]
    outputs = running.engine.generate(requests)
    assert all(map(math.isnan, outputs[0]["scored"][4]["logprobs"]))  # Member b.
    assert not any(map(math.isnan, outputs[0]["scored"][0]["logprobs"]))
    assert_explained(running, fine, outputs[1])
