"""What whole distributions are like, against float64, in isolation and on both model runners."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eft_server.engine.message import Explaining, Scoring
from eft_server.engine.worker.measures.statistics import RowStatistics, statistics_of

from .reference import Text, continued
from .small_family import POISON, Running
from .test_composite import FILTERED_BY_BASE, FILTERED_BY_EXPERT, MIXED, NEGATIVE, UP_SCALED, greedy, prompt
from .test_scoring import EVERYBODY, OWN, assert_scored, score

pytestmark = pytest.mark.engine

VOCABULARY = 5000


def peaked(p_max: float, others: int = VOCABULARY - 1) -> torch.Tensor:
    """Logits, around 20, of which one has this probability and others share the rest."""
    row = torch.full((VOCABULARY,), -torch.inf, dtype=torch.float64)
    row[:others] = math.log1p(-p_max) - math.log(others)
    row[VOCABULARY - 7] = math.log(p_max)
    return row + 20


def drawn(scale: float) -> torch.Tensor:
    rng = torch.Generator().manual_seed(round(scale * 1000))
    return scale * torch.randn(VOCABULARY, generator=rng, dtype=torch.float64)


def statistics64(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """By their definitions; the argmax is left out, since 1 − p_max is 0 in float64, too, for a few rows."""
    rows = rows.double()
    log_p = rows.log_softmax(-1)
    rest = rows.scatter(-1, rows.argmax(-1, keepdim=True), -torch.inf)
    return {
        "entropy": torch.special.entr(log_p.exp()).sum(-1),
        "sum_of_squares": log_p.exp().square().sum(-1),
        "log_rest": rest.logsumexp(-1) - rows.logsumexp(-1),
    }


@pytest.mark.parametrize(
    "row",
    [
        *(peaked(p) for p in (1 - 1e-12, 1 - 1e-6, 0.999, 0.5, 0.01, 0.0002)),
        peaked(1 - 1e-9, others=1),
        peaked(0.5, others=1),
        torch.zeros(VOCABULARY, dtype=torch.float64),
        *(drawn(scale) for scale in (1e-3, 1.0, 10.0, 1000.0)),
        drawn(3.0).index_fill(0, torch.arange(100, 4000), -torch.inf),
    ],
)
def test_rows_are_measured_without_cancellation(row: torch.Tensor) -> None:
    row = row.float()
    expected, found = statistics64(row.unsqueeze(0)), statistics_of(row.unsqueeze(0))
    for name, values in expected.items():
        own = getattr(found, name)
        assert own.dtype == torch.float32 and own.shape == (1, 1)
        # The likeliest has all of float64's probability where the entropy is below its precision.
        least = 1e-15 if name == "entropy" else 0.0
        torch.testing.assert_close(own[0].double(), values, rtol=2e-6, atol=least)


def test_a_certain_token_leaves_nothing_and_a_broken_row_is_nan() -> None:
    rows = torch.full((2, 9), -torch.inf)
    rows[0, 4] = 3.0
    rows[1] = torch.nan
    found = statistics_of(rows)
    assert [values[0, 0].item() for values in found.all] == [0.0, 1.0, -math.inf]
    assert all(values[0, 1].isnan() for values in found.all)


def test_rows_are_not_changed_and_are_joined_by_vector() -> None:
    rows = torch.stack([drawn(1.0), drawn(2.0)]).float()
    before = rows.clone()
    found = RowStatistics.together([statistics_of(rows), statistics_of(rows[[1, 0]])])
    assert torch.equal(rows, before)
    assert all(torch.equal(values[0], values[1, [1, 0]]) for values in found.all)


def test_a_request_is_explained_or_measured() -> None:
    asked = Explaining(likely=1, leading=1, base=0)
    with pytest.raises(ValueError, match="not both"):
        Scoring(0, (1,), ((1.0,),), asked, statistics=True)


def measure(
    text: Text, targets: Sequence[int], vectors: Sequence[Sequence[float]] = EVERYBODY
) -> dict[str, Any]:
    """A request to score these tokens and to measure their rows."""
    request = score(text, targets, vectors)
    request["scoring"]["statistics"] = True
    return request


def run(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests in one batch; every number of those to measure must be the reference's."""
    outputs = running.engine.generate([{k: v for k, v in r.items() if k != "text"} for r in requests])
    for request, output in zip(requests, outputs, strict=True):
        if "scoring" in request:
            assert_measured(running, request, output)
    return outputs


def assert_measured(running: Running, request: dict[str, Any], output: dict[str, Any]) -> None:
    scoring = request["scoring"]
    for vector, found in zip(scoring["vectors"], output["scored"], strict=True):
        assert_scored(running, request["text"], scoring["targets"], vector, found)
        if not scoring.get("statistics"):
            assert found["statistics"] is None
            continue
        text = continued(request["text"], scoring["targets"][:-1])
        rows = running.reference.logits(text, vector)[-len(scoring["targets"]) :]
        for name, values in statistics64(rows).items():
            assert found["statistics"][name] == pytest.approx(values.tolist(), rel=1e-3, abs=1e-5), name


def test_every_number_is_the_references_in_batches_that_mix_requests(running: Running) -> None:
    filtered = [FILTERED_BY_EXPERT, UP_SCALED, FILTERED_BY_BASE, NEGATIVE]
    requests = [
        measure(prompt(700, 9), prompt(701, 12)),
        score(prompt(702, 9), prompt(703, 4)),
        measure(prompt(704, 1), prompt(705, 1)),
        measure(prompt(706, 20), prompt(707, 7), filtered),
        greedy(prompt(708, 5), MIXED, 6),
    ]
    outputs = run(running, requests)
    assert outputs[-1]["choices"][0]["tokens"] == running.reference.greedy(prompt(708, 5), MIXED, 6)


def test_rows_that_are_almost_certain_keep_their_digits(running: Running) -> None:
    [output] = run(running, [measure(prompt(780, 9), prompt(781, 12), [SHARP])])
    rests = output["scored"][0]["statistics"]["log_rest"]
    assert min(rests) < -30 and math.isfinite(min(rests))


SHARP = [40.0, 0.0, -1.0, 0.0]


def test_a_filter_that_leaves_one_token_makes_it_certain(running: Running) -> None:
    [output] = run(running, [measure(prompt(710, 6), prompt(711, 3), [ONLY_LIKELIEST])])
    [found] = output["scored"]
    assert found["statistics"] == {
        "entropy": [0.0] * 3,
        "sum_of_squares": [1.0] * 3,
        "log_rest": [-math.inf] * 3,
    }


ONLY_LIKELIEST = [*FILTERED_BY_BASE[:-1], 0.0]


def test_members_prompts_chunks_and_the_prefix_cache_change_nothing(running: Running) -> None:
    texts = [[prompt(720 + 10 * i + m, n) for m, n in enumerate(lengths)] for i, lengths in enumerate(OWN)]
    requests = [
        *(measure(text, prompt(750 + i, 30)) for i, text in enumerate(texts)),
        measure(prompt(760, 150), prompt(761, 90)),
    ]
    first, again = run(running, requests), run(running, requests)
    assert again[3]["cached_tokens"] >= 96 > first[3]["cached_tokens"]


def test_a_row_that_is_not_finite_is_nan_and_disturbs_nobody(running: Running) -> None:
    broken, fine = measure([POISON, *prompt(770, 5)], prompt(771, 4)), measure(prompt(772, 9), prompt(773, 4))
    requests = [{k: v for k, v in request.items() if k != "text"} for request in (broken, fine)]
    outputs = running.engine.generate(requests)
    if "scored" in outputs[0]:
        assert all(map(math.isnan, outputs[0]["scored"][4]["logprobs"]))
    assert_measured(running, fine, outputs[1])
