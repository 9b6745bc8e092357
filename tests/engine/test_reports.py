"""What a report tells of each generated token, against plain transformers in float32, on both model runners."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from eft_server.engine.worker.measures.reporting import ReportingRows, compare

from .reference import Text, continued
from .small_family import POISON, Running
from .test_composite import (
    AMPLIFIED,
    BASE,
    EXPERT_ALONE,
    FILTERED_BY_BASE,
    FILTERED_BY_EXPERT,
    MIXED,
    NEGATIVE,
    SETTINGS,
    UP_SCALED,
    greedy,
    prompt,
)

pytestmark = pytest.mark.engine

TOLERANCE = 1e-3


def expected(running: Running, text: Text, vector: Sequence[float], tokens: Sequence[int]) -> torch.Tensor:
    """(T, 2): whether the likeliest id is another than the base's, and KL(composite‖base), at each of the tokens."""
    read, plain = continued(text, tokens[:-1]), [1.0] + [0.0] * (len(running.reference.models) - 1)
    own, base = (running.reference.logprobs(read, one)[-len(tokens) :].double() for one in (vector, plain))
    terms = torch.where(own == -torch.inf, 0.0, own.exp() * (own - base))
    return torch.stack([(own.argmax(-1) != base.argmax(-1)).double(), terms.sum(-1)], dim=-1)


def check_reports(running: Running, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests in one batch; those that ask, and only those, have the reference's figures for each token."""
    asked = [(one.get("report"), one.get("prompts", one["prompt"]), one["coefficients"]) for one in requests]
    outputs = running.engine.generate(requests)
    for (report, text, vector), output in zip(asked, outputs, strict=True):
        for choice in output["choices"]:
            if not report:
                assert choice["figures"] is None
                continue
            rows = expected(running, text, vector, choice["tokens"])
            assert [row[0] for row in choice["figures"]] == rows[:, 0].tolist()
            assert [row[1] for row in choice["figures"]] == pytest.approx(rows[:, 1].tolist(), abs=TOLERANCE)
    return outputs


def test_a_mixed_batch_reports_on_those_that_ask(running: Running) -> None:
    settings = [*SETTINGS, FILTERED_BY_EXPERT, FILTERED_BY_BASE, AMPLIFIED]
    for parity in (0, 1):
        requests = [
            greedy(prompt(600 + i, 5 + 9 * i), setting, 3 + i, report=i % 2 == parity)
            for i, setting in enumerate(settings)
        ]
        outputs = check_reports(running, requests)
    figures = [row for output in outputs for row in output["choices"][0]["figures"] or ()]
    assert {changed for changed, _ in figures} == {0.0, 1.0} and max(kl for _, kl in figures) > 0.1


@pytest.mark.parametrize("setting", [BASE, EXPERT_ALONE, MIXED, FILTERED_BY_BASE], ids=str)
def test_a_batch_of_one_setting_reports_on_all_or_some(running: Running, setting: list[float]) -> None:
    """Rows that are alike take another way, and a plain member's do not need the base for themselves."""
    for reporting in ([True] * 3, [False, True, False]):
        requests = [
            greedy(prompt(620 + i, 8), setting, 4, report=report) for i, report in enumerate(reporting)
        ]
        outputs = check_reports(running, requests)
    if setting == BASE:
        assert outputs[1]["choices"][0]["figures"] == [[0.0, 0.0]] * 4


def test_chunks_of_a_prompt_report_nothing(running: Running) -> None:
    lengths = [150, 9, 200, 70]
    requests = [greedy(prompt(630 + i, n), SETTINGS[i], 5, report=True) for i, n in enumerate(lengths)]
    check_reports(running, requests)


def test_a_report_reads_the_base_where_only_an_expert_was_cached(running: Running) -> None:
    shared = prompt(640, 70)
    check_reports(running, [greedy(shared, EXPERT_ALONE, 3)])
    outputs = check_reports(running, [greedy(shared, EXPERT_ALONE, 3, report=True)])
    assert outputs[0]["cached_tokens"] == 0, "the base has not read these blocks"


def test_prompt_logprobs_are_no_part_of_a_report(running: Running) -> None:
    requests = [
        greedy(prompt(650 + i, 70), setting, 3, report=i != 1, prompt_logprobs=1)
        for i, setting in enumerate(SETTINGS)
    ]
    check_reports(running, requests)


def test_n_samples_have_a_report_each(running: Running) -> None:
    request = greedy(prompt(660, 12), MIXED, 6, report=True, temperature=0.9, n=4, seed=3)
    choices = check_reports(running, [request, greedy(prompt(661, 12), UP_SCALED)])[0]["choices"]
    assert len({str(choice["figures"]) for choice in choices}) > 1


def test_members_with_prompts_of_their_own_are_compared_at_the_same_token(running: Running) -> None:
    requests = []
    for index, setting in enumerate([MIXED, EXPERT_ALONE, NEGATIVE]):
        own = [prompt(670 + 4 * index + member, length) for member, length in enumerate((40, 9, 75, 31))]
        longest = max(own, key=len)
        requests.append(greedy(longest, setting, 5, prompts=own, report=True))
    check_reports(running, requests)


def test_a_preempted_request_reports_on_each_token_once(running: Running) -> None:
    requests = [greedy(prompt(680 + i, 60), SETTINGS[i % 5], 14, report=True) for i in range(10)]
    outputs = check_reports(running, requests)
    assert outputs[0]["metrics"]["vllm:num_preemptions"] > 0


def test_a_stop_string_ends_the_report_where_it_ends_the_tokens(running: Running) -> None:
    whole = running.engine.generate([greedy(prompt(700, 9), MIXED, 12)])[0]["choices"][0]
    stop = whole["text"][len(whole["text"]) // 2 :][:4]
    output = check_reports(running, [greedy(prompt(700, 9), MIXED, 12, report=True, stop=[stop])])[0]
    choice = output["choices"][0]
    assert choice["finish_reason"] == "stop" and len(choice["tokens"]) < 12


def test_rejected_drafts_are_not_reported(running: Running) -> None:
    if not running.speculative:
        pytest.skip("nothing is drafted")
    output = check_reports(running, [greedy(prompt(710, 9), MIXED, 24, report=True)])[0]
    drafts = output["metrics"]
    assert drafts["vllm:spec_decode_num_draft_tokens"] > drafts["vllm:spec_decode_num_accepted_tokens"]


def test_accepted_drafts_behind_the_last_token_are_not_reported(running: Running) -> None:
    """Where b drafts for itself, all are accepted, and the limit falls between them."""
    alone = [0.0, 0.0, 0.0, 1.0]
    for count in (5, 6, 7):
        output = check_reports(running, [greedy(prompt(715, 9), alone, count, report=True)])[0]
        assert len(output["choices"][0]["figures"]) == count


def test_a_request_that_fails_leaves_its_neighbours_their_reports(running: Running) -> None:
    broken = greedy([1, POISON, 3], MIXED, 5, report=True)
    good = greedy(prompt(720, 9), UP_SCALED, 5, report=True)
    outputs = running.engine.generate([broken, dict(good)])
    assert outputs[0]["choices"][0]["finish_reason"] == "error"
    figures = outputs[1]["choices"][0]["figures"]
    assert len(figures) == 5
    rows = expected(running, good["prompt"], UP_SCALED, outputs[1]["choices"][0]["tokens"])
    assert [row[1] for row in figures] == pytest.approx(rows[:, 1].tolist(), abs=TOLERANCE)


def test_impossible_ids_count_nothing() -> None:
    inf = torch.inf
    blended = torch.tensor([[0.0, 0.0, -inf, -inf], [0.0, 0.0, -inf, 1.0]])
    base = torch.tensor([[0.0, 0.0, 0.0, -inf], [0.0, 0.0, -inf, -inf]])
    figures = compare(blended, base)
    assert figures[0].tolist() == pytest.approx([0.0, float(torch.tensor(1.5).log())])
    assert figures[1].tolist() == [1.0, inf], "what the base never says is infinitely far from it"


def test_figures_go_to_their_requests() -> None:
    rows = ReportingRows.of(["a", "b", "c"], np.array([True, False, True]), [3, 1, 2])
    assert rows is not None and rows.rows_R.tolist() == [True, True, True, False, True, True]
    figures = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = rows.by_request(figures, [2, 1, 2])
    assert {key: value[:, 0].tolist() for key, value in found.items()} == {"a": [0.0, 2.0], "c": [6.0, 8.0]}
    assert ReportingRows.of(["a"], np.array([False]), [1]) is None
