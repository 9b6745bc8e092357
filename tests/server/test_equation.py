"""The equation, its special rows and its edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_server.behaviour.coefficients import BASE_FILTER, EXPERT_FILTER
from eft_server.behaviour.equation import Filters, blend, is_plain_base, nucleus

NONE = torch.tensor([], dtype=torch.long)
BASE = [1.0, 0.0, 0.0]


def members(rows: int = 4, vocab: int = 11, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + vocab)
    return [torch.randn(rows, vocab, generator=generator).mul(20).to(dtype) for _ in range(3)]


number = st.floats(-8, 8, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=6))
def test_every_row_is_its_own_linear_combination(rows: list[tuple[float, float, float]]) -> None:
    logits_M = members(rows=len(rows))
    blended = blend(logits_M, torch.tensor(rows), NONE)
    for row, weights in enumerate(rows):
        exact = sum(weight * logits[row].double() for weight, logits in zip(weights, logits_M, strict=True))
        torch.testing.assert_close(blended[row].double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_plain_base_row_is_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    logits_M = members(dtype=dtype)
    logits_M[0][0, 0] = -0.0
    logits_M[1][0] = torch.inf
    logits_M[2][0] = torch.nan
    coefficients = torch.tensor([BASE, [1.0, -1.0, 1.0], BASE, BASE])
    blended = blend(logits_M, coefficients, torch.tensor([9, 10]))
    assert blended.dtype == torch.float32
    for row in (0, 2, 3):
        assert torch.equal(blended[row].view(torch.int32), logits_M[0][row].float().view(torch.int32))


def test_the_sum_is_taken_in_float32() -> None:
    logits_M = [torch.tensor([[256.0]], dtype=torch.bfloat16), torch.tensor([[1.0]], dtype=torch.bfloat16)]
    assert blend(logits_M, torch.tensor([[1.0, 1.0]]), NONE).item() == 257.0


def test_ids_that_are_not_shared_are_minus_infinity_where_the_base_is_steered() -> None:
    blended = blend(members(), torch.tensor([BASE, [1, -1, 1], [0, 0, 1], [0.5, 0, 0]]), torch.tensor([3, 7]))
    assert torch.isfinite(blended[0]).all()
    for row in (1, 2, 3):
        assert (blended[row] == -torch.inf).nonzero().flatten().tolist() == [3, 7]


def test_unshared_ids_may_be_infinite_in_members_without_harm() -> None:
    logits_M = members()
    logits_M[1][:, 3] = -torch.inf
    logits_M[2][:, 3] = -torch.inf
    logits_M[0][:, 3] = -torch.inf
    blended = blend(logits_M, torch.tensor([[1.0, -1.0, 1.0]]).expand(4, -1), torch.tensor([3]))
    assert (blended[:, 3] == -torch.inf).all()
    assert torch.isfinite(blended[:, :3]).all()


@pytest.mark.parametrize("width", [8, 14])
def test_members_may_be_padded_to_other_sizes(width: int) -> None:
    logits_M = members()
    other = members(vocab=width)[1]
    blended = blend([logits_M[0], other, logits_M[2]], torch.tensor([[1.0, -2.0, 0.5]]).expand(4, -1), NONE)
    assert blended.shape == (4, 11)
    expected = logits_M[0] + 0.5 * logits_M[2]
    expected[:, : min(width, 11)] -= 2 * other[:, :11]
    torch.testing.assert_close(blended, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_nan_throughout_and_alone(value: float) -> None:
    logits_M = members()
    logits_M[2][1, 4] = value
    blended = blend(logits_M, torch.tensor([[1.0, -1.0, 1.0]]).expand(4, -1), NONE)
    assert blended[1].isnan().all()
    assert torch.isfinite(blended[[0, 2, 3]]).all()


def test_infinities_that_cancel_are_not_finite() -> None:
    logits_M = members()
    logits_M[1][0, 0] = logits_M[2][0, 0] = torch.inf
    assert blend(logits_M, torch.tensor([[1.0, -1.0, 1.0]]).expand(4, -1), NONE)[0].isnan().all()


def test_coefficients_that_are_not_finite_spoil_their_row_alone() -> None:
    blended = blend(members(), torch.tensor([BASE, [torch.nan] * 3, BASE, BASE]), NONE)
    assert blended[1].isnan().all()
    assert torch.isfinite(blended[[0, 2, 3]]).all()


def test_members_are_left_as_they_were() -> None:
    logits_M = members()
    copies = [logits.clone() for logits in logits_M]
    blend(logits_M, torch.tensor([BASE, [1, -1, 1], [0, 0, 1], [0.5, 0, 0]]), torch.tensor([3, 7]))
    assert all(torch.equal(logits, copy) for logits, copy in zip(logits_M, copies, strict=True))


def test_only_one_and_zeros_is_the_plain_base() -> None:
    rows = torch.tensor([BASE, [1, 0, 1e-30], [0.999, 0, 0], [0, 1, 0]])
    assert is_plain_base(rows).tolist() == [True, False, False, False]


def filters(kind: int, top_p: float, delta: list[float] | None = None, rows: int = 4) -> Filters:
    kinds = torch.tensor([0.0] + [float(kind)] * (rows - 1))
    return Filters(torch.tensor([delta or [0.0] * 3]).expand(rows, -1), kinds, torch.full((rows,), top_p))


def by_hand(logits: torch.Tensor, top_p: float) -> set[int]:
    """The nucleus, token by token."""
    probabilities = logits.double().softmax(-1).tolist()
    inside: set[int] = set()
    for token in logits.argsort(descending=True, stable=True).tolist():
        if inside and sum(probabilities[other] for other in inside) >= top_p:
            break
        inside.add(token)
    return inside


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=12, unique=True), st.floats(0, 0.999))
def test_a_nucleus_is_what_it_is_by_hand(row: list[float], top_p: float) -> None:
    logits = torch.tensor([row])
    inside = nucleus(logits, torch.tensor([top_p]))[0].nonzero().flatten().tolist()
    # At the edge float32 may fall on the other side.
    assert set(inside) in (by_hand(logits[0], top_p - 1e-5), by_hand(logits[0], top_p + 1e-5))


def test_equally_likely_tokens_are_in_a_nucleus_together() -> None:
    assert nucleus(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), torch.tensor([0.1])).tolist() == [
        [False, True, True, False]
    ]


def by_sorting(logits_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The definition, in float64 and one row after the other."""
    inside_RV = torch.zeros_like(logits_RV, dtype=torch.bool)
    for row, probability_V in enumerate(logits_RV.double().softmax(-1)):
        for token, probability in enumerate(probability_V):
            likelier = probability_V[probability_V > probability].sum()
            inside_RV[row, token] = likelier < top_p or likelier == 0
    return inside_RV


@pytest.mark.parametrize("likely", [1, 3, 64])
@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.9, 0.99])
def test_small_and_large_nuclei_are_found_in_one_batch(
    likely: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_server.behaviour.equation.LIKELY", likely)
    rng = torch.Generator().manual_seed(0)
    sharpness_R1 = torch.tensor([0.1, 1.0, 10.0, 3.0]).unsqueeze(-1)
    logits_RV = torch.randn(4, 200, generator=rng) * sharpness_R1
    logits_RV[3, 50:60] = logits_RV[3].amax()
    logits_RV[1, 7] = -torch.inf
    top_p_R = torch.full((4,), top_p)
    assert torch.equal(nucleus(logits_RV, top_p_R), by_sorting(logits_RV, top_p))


def test_a_nucleus_of_one_holds_what_sums_in_float32_would_lose() -> None:
    logits_RV = torch.cat((torch.tensor([60.0, -torch.inf]), torch.randn(3000))).unsqueeze(0)
    inside_RV = nucleus(logits_RV, torch.tensor([1.0]))
    assert inside_RV.sum() == 3001
    assert not inside_RV[0, 1]


def test_an_expert_filter_adds_the_delta_inside_the_experts_nucleus_alone() -> None:
    logits_M = [logits / 10 for logits in members()]
    alone = torch.tensor([[0.0, 0.0, 1.0]]).expand(4, -1)
    blended = blend(logits_M, alone, NONE, filters(EXPERT_FILTER, 0.6, [1.0, -1.0, 0.0]))
    torch.testing.assert_close(blended[0], logits_M[2][0])
    for row in (1, 2, 3):
        log_p = [logits[row].log_softmax(-1) for logits in logits_M]
        inside = by_hand(logits_M[2][row], 0.6)
        assert 0 < len(inside) < 11
        for token in range(11):
            added = log_p[0][token] - log_p[1][token] if token in inside else 0.0
            assert blended[row, token] == pytest.approx(float(logits_M[2][row, token] + added), abs=1e-5)


def test_a_base_filter_keeps_the_bases_nucleus_alone() -> None:
    logits_M = [logits / 10 for logits in members()]
    blended = blend(logits_M, torch.tensor([[1.0, -1, 1]]).expand(4, -1), NONE, filters(BASE_FILTER, 0.6))
    expected = logits_M[0] - logits_M[1] + logits_M[2]
    torch.testing.assert_close(blended[0], expected[0])
    for row in (1, 2, 3):
        inside = by_hand(logits_M[0][row], 0.6)
        assert set((blended[row] > -torch.inf).nonzero().flatten().tolist()) == inside
        torch.testing.assert_close(blended[row, list(inside)], expected[row, list(inside)])


@pytest.mark.parametrize("kind", [EXPERT_FILTER, BASE_FILTER])
def test_ids_that_are_not_shared_take_no_part_in_a_nucleus(kind: int) -> None:
    logits_M = members()
    logits_M[0][:, 3] = logits_M[2][:, 3] = 200.0
    logits_M[1][:, 3] = -torch.inf
    settings_RM = torch.tensor([BASE, [0.0, 0, 1], BASE, [0.0, 0, 1]])
    blended = blend(logits_M, settings_RM, torch.tensor([3]), filters(kind, 0.5, [1.0, -1.0, 0.0]))
    without = [
        torch.cat([logits[:, :3], torch.full((4, 1), -torch.inf), logits[:, 4:]], -1) for logits in logits_M
    ]
    assert (blended[1:, 3] == -torch.inf).all()
    for row in (1, 2, 3):
        judge = without[0] if kind == BASE_FILTER or row == 2 else without[2]
        inside = by_hand(judge[row], 0.5)
        assert blended[row].isfinite().sum() == (len(inside) if kind == BASE_FILTER else 10)


@pytest.mark.parametrize("member", [0, 2])
def test_a_filtered_row_that_is_not_finite_is_nan_throughout_and_alone(member: int) -> None:
    logits_M = members()
    logits_M[member][1, 4] = torch.nan
    combined = torch.tensor([[1.0, -1.0, 1.0]]).expand(4, -1)
    blended = blend(logits_M, combined, NONE, filters(BASE_FILTER, 0.5))
    assert blended[1].isnan().all()
    assert not blended[[0, 2, 3]].isnan().any()
