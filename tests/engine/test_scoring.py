"""Given tokens under several vectors at once, against plain transformers, on both model runners."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from .reference import Text, continued
from .small_family import POISON, SHARED, Running
from .test_composite import (
    BASE,
    EXPERT_ALONE,
    FILTERED_BY_BASE,
    FILTERED_BY_EXPERT,
    MIXED,
    NEGATIVE,
    TOLERANCE,
    UP_SCALED,
    check,
    greedy,
    prompt,
)

pytestmark = pytest.mark.engine

REFERENCE_ALONE = [0.0, 1.0, 0.0, 0.0]
B_ALONE = [0.0, 0.0, 0.0, 1.0]
EVERYBODY = [MIXED, BASE, REFERENCE_ALONE, EXPERT_ALONE, B_ALONE]


def score(
    text: Text, targets: Sequence[int], vectors: Sequence[Sequence[float]] = EVERYBODY
) -> dict[str, Any]:
    """A request to score these tokens behind a text, or behind each member's own."""
    own = isinstance(text[0], Sequence)
    read = continued(text, targets[:-1])
    longest = max(read, key=len) if own else read
    first = len(longest) - len(targets)
    scoring = {"first": first, "targets": list(targets), "vectors": [list(m) for m in vectors]}
    return {"prompt": longest, "text": text, "scoring": scoring} | ({"prompts": read} if own else {})


def check_scores(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests to score in one batch; every number must be the reference's."""
    outputs = running.engine.generate([{k: v for k, v in r.items() if k != "text"} for r in requests])
    for request, output in zip(requests, outputs, strict=True):
        vectors = request["scoring"]["vectors"]
        for vector, found in zip(vectors, output["scored"], strict=True):
            assert_scored(running, request["text"], request["scoring"]["targets"], vector, found)
    return outputs


def assert_scored(
    running: Running, text: Text, targets: Sequence[int], vector: Sequence[float], found: dict[str, Any]
) -> None:
    """Log-probability, rank and likeliest of every token."""
    rows = running.reference.logprobs(continued(text, targets[:-1]), vector)[-len(targets) :]
    for place, (token, row) in enumerate(zip(targets, rows, strict=True)):
        expected = float(row[token])
        assert found["logprobs"][place] == pytest.approx(expected, abs=TOLERANCE)
        assert found["likeliest"][place] == pytest.approx(float(row.max()), abs=TOLERANCE)
        near = int((row > expected + TOLERANCE).sum()), int((row > expected - TOLERANCE).sum())
        assert near[0] <= found["ranks"][place] - 1 <= near[1]


def test_one_pass_scores_a_text_under_every_vector(running: Running) -> None:
    filtered = [FILTERED_BY_EXPERT, BASE, FILTERED_BY_BASE, NEGATIVE]
    requests = [
        score(prompt(400, 9), prompt(401, 12)),
        score(prompt(402, 1), prompt(403, 1)),
        score(prompt(404, 20), prompt(405, 5), filtered),
    ]
    outputs = check_scores(running, requests)
    assert len({tuple(found["logprobs"]) for found in outputs[0]["scored"]}) == len(EVERYBODY)
    assert math.inf in [-value for value in outputs[2]["scored"][2]["logprobs"]]


def test_prompts_of_the_members_own_are_no_obstacle(running: Running) -> None:
    texts = [[prompt(410 + 10 * i + m, n) for m, n in enumerate(lengths)] for i, lengths in enumerate(OWN)]
    check_scores(running, [score(text, prompt(450 + i, 30)) for i, text in enumerate(texts)])


OWN = ([9, 40, 3, 20], [70, 2, 2, 2], [1, 64, 128, 96])


def test_chunks_and_neighbours_change_nothing(running: Running) -> None:
    """A step reads at most 64 tokens: some end in front of what is scored, some inside it."""
    text = [prompt(460 + member, length) for member, length in enumerate((12, 75, 140, 40))]
    scores = [
        score(prompt(470, 150), prompt(471, 90)),
        score(prompt(472, 64), prompt(473, 65)),
        score(text, prompt(474, 80)),
    ]
    beside = [greedy(prompt(475, 50), MIXED, 6), greedy(prompt(476, 7), UP_SCALED, 6)]
    requests = [beside[0], *({k: v for k, v in s.items() if k != "text"} for s in scores), beside[1]]
    outputs = running.engine.generate([dict(request) for request in requests])
    for request, output in zip(scores, outputs[1:4], strict=True):
        for vector, found in zip(EVERYBODY, output["scored"], strict=True):
            assert_scored(running, request["text"], request["scoring"]["targets"], vector, found)
    for request, output in zip(beside, (outputs[0], outputs[4]), strict=True):
        tokens = output["choices"][0]["tokens"]
        assert tokens == running.reference.greedy(request["prompt"], request["coefficients"], 6)


def test_a_prompt_that_is_cached_is_not_read_again_but_what_is_scored_is(running: Running) -> None:
    shared = prompt(480, 96)
    check(running, [greedy([*shared, 5], MIXED, 2)])
    again = [score(shared, prompt(481, 40)), score(shared, prompt(482, 3)), score([*shared, 5], [7, 8])]
    cached = [output["cached_tokens"] for output in check_scores(running, again)]
    # The row of the prompt's last token is needed: a prompt of exactly three blocks is read from its third on.
    assert cached == [64, 64, 96]
    assert [output["cached_tokens"] for output in check_scores(running, again)] == cached
    own = score([prompt(483, 100), prompt(484, 110), prompt(485, 90), prompt(486, 160)], prompt(487, 20))
    assert [check_scores(running, [own])[0]["cached_tokens"] for _ in range(2)] == [0, 128]


def test_an_id_that_not_all_members_share_is_impossible_to_all_but_the_plain_base(running: Running) -> None:
    [output] = check_scores(running, [score(prompt(520, 6), [3, SHARED])])
    values = [found["logprobs"][1] for found in output["scored"]]
    assert [math.isinf(value) for value in values] == [True, False, True, True, True]


def test_rows_that_are_not_finite_say_so_and_disturb_nobody(running: Running) -> None:
    """The last row fails the request; earlier ones come back as NaN."""
    broken = score([POISON, *prompt(530, 5)], prompt(531, 4), [BASE, B_ALONE])
    fine = score(prompt(532, 9), prompt(533, 4))
    outputs = running.engine.generate(
        [{k: v for k, v in request.items() if k != "text"} for request in (broken, fine)]
    )
    own, other = outputs[0]["scored"]
    assert all(map(math.isfinite, own["logprobs"]))
    assert all(map(math.isnan, other["logprobs"]))
    for vector, found in zip(EVERYBODY, outputs[1]["scored"], strict=True):
        assert_scored(running, fine["text"], fine["scoring"]["targets"], vector, found)
