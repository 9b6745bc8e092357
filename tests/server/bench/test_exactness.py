"""What the comparison with transformers counts; the comparison itself is run by hand."""

import torch

from eft_server.bench.exactness import Difference, EngineAnswer, Said, _cases, _hold_against, _print
from eft_server.family.load import load_config
from eft_server.family.vocabulary import Vocabulary

ROWS = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()


def held(said: Said, cost: float = 0.0) -> Difference:
    difference = Difference()
    _hold_against(difference, EngineAnswer((0, 1), (said,)), ROWS, cost)
    return difference


def test_the_largest_difference_counts_and_so_does_every_value():
    difference = held(Said(1, {1: float(ROWS[1, 1]), 2: float(ROWS[1, 2]) + 0.5}, chosen=1))
    assert (difference.compared, difference.worse_tokens) == (2, 0)
    assert abs(difference.largest - 0.5) < 1e-6


def test_a_greedy_token_that_is_not_the_likeliest_counts():
    assert held(Said(0, {1: float(ROWS[0, 1])}, chosen=1)).worse_tokens == 1
    assert held(Said(0, {1: float(ROWS[0, 1])}, chosen=None)).worse_tokens == 0


def test_in_low_precision_a_request_counts_in_what_the_dtype_costs():
    said = Said(1, {1: float(ROWS[1, 1]) + 0.2, 2: float(ROWS[1, 2]) + 0.4}, chosen=1)
    assert abs(held(said, cost=0.1).noises - 3.0) < 1e-5


def test_what_is_not_a_number_or_not_said_is_as_far_away_as_can_be():
    assert held(Said(1, {1: float("nan")}, chosen=1)).largest == float("inf")
    difference = Difference()
    _hold_against(difference, EngineAnswer((0,), ()), ROWS, 0.1)
    assert difference.noises == float("inf")


def test_only_what_is_above_the_tolerance_fails():
    found = {"generated": Difference(largest=0.01, compared=1)}
    assert _print("demo", "float32", found, 0.001)
    assert not _print("demo", "float32", found, 0.02)


def test_the_batch_mixes_the_plain_base_with_other_weights_and_scores_some_prompts():
    cases = list(_cases(load_config("demo"), Vocabulary(1536, ((0, 1500),)), 12, 512))
    plain = [case for case in cases if case.coefficients[0] == 1 and not any(case.coefficients[1:])]
    assert 3 <= len(plain) < 12
    assert len({case.coefficients for case in cases}) > 3
    assert {case.scores_prompt for case in cases} == {True, False}
    beginnings = [case for case in cases if case.prompt[:128] == cases[0].prompt[:128]]
    assert len(beginnings) == 8
    assert any(case in plain for case in beginnings) and not all(case in plain for case in beginnings)
