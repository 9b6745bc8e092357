"""What `test_blend_kernels.py` runs under Triton's interpreter: both ways to blend, against float64.

Shape suffixes: R rows, V vocabulary, M members, W a vector's numbers, K vectors.
"""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from eft_server.behaviour.coefficients import BASE_FILTER, EXPERT_FILTER
from eft_server.behaviour.equation import blend
from eft_server.engine.worker.columns import split_vectors
from eft_server.engine.worker.measures.reporting import compare
from eft_server.engine.worker.v2 import blending, report_kernels
from eft_server.engine.worker.v2.blending import Blending, Logits, Rows, SharedIds, score, score_blended

from .interpreted import patch_once

patch_once()

CPU = torch.device("cpu")
NAN, INFINITE = math.nan, math.inf


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a few hundred ids then takes several, as a real one does."""
    monkeypatch.setattr(blending, "BLOCK", 128)
    monkeypatch.setattr(blending, "NUCLEUS_BLOCK", 512)
    monkeypatch.setattr(report_kernels, "BLOCK", 128)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def vector(*weights: float, delta: Sequence[float] = (), kind: int = 0, top_p: float = 0.0) -> list[float]:
    return [*weights, *(delta or [0.0] * len(weights)), float(kind), top_p]


def exactly(
    logits_M: Sequence[torch.Tensor],
    numbers: Sequence[float],
    row: int,
    unshared: Sequence[int],
    slack: float,
) -> torch.Tensor:
    """One row in float64, token set by token set, with top_p a little off."""
    members = len(logits_M)
    weights, shares, (kind, top_p) = numbers[:members], numbers[members:-2], numbers[-2:]
    size = logits_M[0].shape[-1]
    total_V = torch.zeros(size, dtype=torch.float64)
    for logits_RV, weight in zip(logits_M, weights, strict=True):
        if weight != 0:
            own_V = logits_RV[row, :size].double()
            total_V[: len(own_V)] += weight * own_V
    if kind or list(weights) != [1.0] + [0.0] * (members - 1):
        total_V[list(unshared)] = -INFINITE
    if kind:
        shared = [token for token in range(size) if token not in set(unshared)]
        judged_V = total_V[shared] if kind == EXPERT_FILTER else logits_M[0][row].double()[shared]
        if not total_V[shared].max().isfinite() or not judged_V.max().isfinite():
            return torch.full_like(total_V, NAN)
        within_V = inside(judged_V, top_p + slack if top_p < 1 else top_p)
        if kind == EXPERT_FILTER:
            delta_V = sum(
                share * logits_RV[row].double()[shared].log_softmax(-1)
                for logits_RV, share in zip(logits_M, shares, strict=True)
                if share != 0
            )
            total_V[shared] += torch.where(within_V, delta_V, 0.0)
        else:
            total_V[shared] = total_V[shared].masked_fill(~within_V, -INFINITE)
    return total_V if total_V.max().isfinite() else torch.full_like(total_V, NAN)


def inside(judged_V: torch.Tensor, top_p: float) -> torch.Tensor:
    values_V, places_V = judged_V.unique(return_inverse=True)  # Ascending; equal ones are together.
    mass_V = torch.zeros_like(values_V).index_add_(0, places_V, judged_V.softmax(-1))
    likelier_V = mass_V.sum() - mass_V.cumsum(0) if len(mass_V) > 1 else torch.zeros_like(mass_V)
    within_V = (likelier_V < top_p) | (top_p >= 1)
    within_V[-1] = True
    return (within_V & (values_V > -INFINITE))[places_V]


def assert_exact(
    found_RV: torch.Tensor,
    logits_M: Sequence[torch.Tensor],
    vectors: Sequence[Sequence[float]],
    unshared: Sequence[int],
) -> None:
    assert found_RV.dtype == torch.float32 and found_RV.shape == (len(vectors), logits_M[0].shape[-1])
    for row, numbers in enumerate(vectors):
        # Float32 may fall on the other side of a nucleus's edge.
        either = [exactly(logits_M, numbers, row, unshared, slack) for slack in (-2e-6, 2e-6)]
        close = [torch.isclose(found_RV[row].double(), one, 1e-6, 3e-5, equal_nan=True) for one in either]
        wrong = (~(close[0] | close[1])).nonzero().flatten().tolist()
        assert not wrong, (
            row,
            numbers,
            wrong[:5],
            found_RV[row, wrong[:5]],
            [one[wrong[:5]] for one in either],
        )


def in_torch(
    logits_M: Sequence[torch.Tensor], vectors: Sequence[Sequence[float]], unshared: Sequence[int]
) -> torch.Tensor:
    coefficients_RM, filters = split_vectors(torch.tensor(vectors))
    filtering = any(numbers[-2] for numbers in vectors)
    return blend(
        logits_M, coefficients_RM, torch.tensor(unshared, dtype=torch.int64), filters if filtering else None
    )


def reading(vectors: Sequence[Sequence[float]], member: int) -> list[int]:
    """The rows that need a member."""
    members = (len(vectors[0]) - 2) // 2
    return [
        row
        for row, numbers in enumerate(vectors)
        if numbers[member] != 0
        or (numbers[-2] == EXPERT_FILTER and numbers[members + member] != 0)
        or (numbers[-2] == BASE_FILTER and member == 0)
    ]


def in_kernels(
    logits_M: Sequence[torch.Tensor],
    vectors: Sequence[Sequence[float]],
    unshared: Sequence[int],
    at_once: int = 3,
    sparse: bool = False,
) -> torch.Tensor:
    """The same by kernels; where that is `sparse`, with no member's logits of rows that do without it."""
    count, size = len(vectors), logits_M[0].shape[-1]
    filtered = [row for row, numbers in enumerate(vectors) if numbers[-2]]
    rows = Rows.of(filtered, count, CPU) if filtered else None
    blended = Blending(SharedIds.of(size, unshared, CPU), torch.tensor(vectors), rows)
    items = []
    for member, logits_RV in enumerate(logits_M):
        read = reading(vectors, member)
        if not sparse or len(read) == count:
            items.append(Logits(member, logits_RV))
        elif read:
            items.append(Logits(member, logits_RV[read], Rows.of(read, count, CPU)))
    for first in range(0, len(items), at_once):
        blended.add(*items[first : first + at_once])
    return blended.finish()


def both(
    logits_M: Sequence[torch.Tensor],
    vectors: Sequence[Sequence[float]],
    unshared: Sequence[int] = (),
    at_once: int = 3,
    sparse: bool = False,
) -> torch.Tensor:
    """What the kernels return, after both ways have been held against float64."""
    assert_exact(in_torch(logits_M, vectors, unshared), logits_M, vectors, unshared)
    copies_M = [logits_RV.clone() for logits_RV in logits_M]
    found_RV = in_kernels(copies_M, vectors, unshared, at_once, sparse)
    assert_exact(found_RV, logits_M, vectors, unshared)
    return found_RV


def drawn(
    sizes: Sequence[int], rows: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(rows, size, generator=rng) * 4).to(dtype) for size in sizes]


TOP_P = (0.0, 1e-6, 0.5, 0.9, 0.999, 1.0)
CASES = [  # Members' sizes, dtype, members at once, whether rows are left out.
    ((300, 290), torch.float32, 2, False),
    ((301, 299, 310), torch.bfloat16, 3, False),
    ((301, 299, 310), torch.bfloat16, 1, True),
    ((257, 256, 257, 250), torch.float16, 2, True),
    ((513, 513, 500, 500, 520), torch.bfloat16, 3, True),
    ((128, 110, 128, 140, 120, 128), torch.float32, 1, True),
]


@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize(("sizes", "dtype", "at_once", "sparse"), CASES)
def test_mixed_rows_are_what_they_are_in_float64(
    sizes: tuple[int, ...], dtype: torch.dtype, at_once: int, sparse: bool, filtering: bool
) -> None:
    members, size = len(sizes), sizes[0]
    unshared = sorted({3, 64, 95, *range(min(sizes), size)})
    rest = [0.0] * (members - 2)
    vectors = [
        vector(1.0, 0.0, *rest),
        vector(1.0, -0.75, *rest),
        vector(*([0.0] * (members - 1)), 1.0),
        vector(0.5, *([0.3] * (members - 1))),
    ]
    if filtering:
        for place, top_p in enumerate((0.6, 0.999)):
            expert = vector(0.0, 1.0, *rest, delta=[1.0, -1.0, *rest], kind=EXPERT_FILTER, top_p=top_p)
            base = vector(1.0, *([0.25] * (members - 1)), kind=BASE_FILTER, top_p=top_p)
            vectors.insert(1 + 2 * place, expert)
            vectors.append(base)
        # Of the plain base; and a delta that begins after it.
        vectors.append(vector(1.0, 0.0, *rest, kind=BASE_FILTER, top_p=0.9))
        vectors.append(vector(1.0, 0.0, *rest, delta=[0.0, 0.5, *rest], kind=EXPERT_FILTER, top_p=0.9))
    logits_M = drawn(sizes, len(vectors), dtype, seed=size)
    for member, logits_RV in enumerate(logits_M):
        spared = [row for row in range(len(vectors)) if row not in reading(vectors, member)]
        logits_RV[spared] = torch.tensor([NAN, INFINITE, -INFINITE])[torch.arange(len(spared)) % 3, None].to(
            dtype
        )
    both(logits_M, vectors, unshared, at_once, sparse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_plain_base_row_is_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    logits_M = drawn((300, 300, 300), 2, dtype)
    # The interpreter takes bfloat16's own smallest numbers for zeros.
    tiny = torch.finfo(dtype).smallest_normal / (1 if dtype == torch.bfloat16 else 2)
    logits_M[0][0, :3] = torch.tensor([-0.0, tiny, -INFINITE]).to(dtype)
    logits_M[1][0], logits_M[2][0] = NAN, INFINITE
    expected_V = logits_M[0][0].float()
    found_RV = in_kernels(logits_M, [vector(1.0, 0, 0), vector(1.0, -1, 1)], [1, 299])
    assert torch.equal(found_RV[0].view(torch.int32), expected_V.view(torch.int32))


def test_float32_logits_of_the_base_become_the_result_also_where_they_are_sliced() -> None:
    logits_M = drawn((330, 330, 310), 3)
    logits_M = [logits_RV[:, :300] for logits_RV in logits_M]
    vectors = [vector(1.0, -1, 1), vector(1.0, 0, 0), vector(0, 0, 1)]
    expected_RV = in_torch(logits_M, vectors, [299])
    found_RV = in_kernels(logits_M, vectors, [299])
    assert found_RV.data_ptr() == logits_M[0].data_ptr()
    torch.testing.assert_close(found_RV, expected_RV)
    half = drawn((300, 300), 1, torch.bfloat16)
    assert in_kernels(half, [vector(1.0, 1)], []).data_ptr() != half[0].data_ptr()


def test_nobodys_logits_make_a_row_of_zeros() -> None:
    found_RV = both(drawn((300, 300), 2), [vector(0, 0)] * 2, [7], sparse=True)
    assert found_RV[0, 7] == -INFINITE
    assert found_RV[0, :7].tolist() == [0.0] * 7


def test_no_rows_are_no_work() -> None:
    blended = Blending(SharedIds.of(300, [], CPU), torch.zeros(0, 6), Rows.of([], 0, CPU))
    blended.add(Logits(0, torch.zeros(0, 300)), Logits(1, torch.zeros(0, 300)))
    assert blended.finish().shape == (0, 300)


@pytest.mark.parametrize("kind", [0, EXPERT_FILTER, BASE_FILTER])
@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("member", [0, 1, 2])
def test_what_is_not_finite_spoils_what_it_is_part_of(member: int, value: float, kind: int) -> None:
    """One value, the likeliest token's, a whole row, and the same where it takes no part."""
    weights = (1.0, -1.0, 1.0) if kind != EXPERT_FILTER else (0.0, 0.0, 1.0)
    steered = vector(*weights, delta=(1.0, -1.0, 0.0), kind=kind, top_p=0.7)
    absent = vector(*(0.0 if place == member else 1.0 for place in range(3)))
    logits_M = drawn((200, 200, 190), 6)
    logits_M[member][0, 180] = value
    logits_M[member][1, logits_M[2][1].argmax()] = value
    logits_M[member][2] = value
    logits_M[member][3] = value
    logits_M[member][4, 5] = value  # Not shared.
    both(logits_M, [steered, steered, steered, absent, steered, steered], [5, *range(190, 200)])


def test_infinities_that_cancel_and_coefficients_that_are_none_spoil_their_row_alone() -> None:
    logits_M = drawn((300, 300, 300), 4)
    logits_M[1][0, 0] = logits_M[2][0, 0] = INFINITE
    combined = vector(1.0, -1, 1)
    found_RV = both(logits_M, [combined, vector(NAN, NAN, NAN), combined, vector(1.0, 0, INFINITE)])
    assert found_RV.isnan().all(dim=-1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", [EXPERT_FILTER, BASE_FILTER])
@pytest.mark.parametrize("top_p", TOP_P)
def test_tokens_of_equal_probability_are_in_a_nucleus_together(kind: int, top_p: float) -> None:
    """Of few values, among them −0 and 0, at the edge of the nucleus and at its top; and of a single one."""
    rows = 4
    rng = torch.Generator().manual_seed(1)
    judge_RV = torch.randint(-3, 3, (rows, 300), generator=rng).float()
    judge_RV[1] = judge_RV[1].clamp(max=0)
    judge_RV[1, ::2] *= -1.0  # Both zeros.
    judge_RV[2] = 1.5
    judge_RV[3, 10:20] = 9.0
    other_RV = drawn((300,), rows)[0]
    logits_M = [judge_RV, other_RV, judge_RV] if kind == BASE_FILTER else [other_RV, other_RV + 1, judge_RV]
    logits_M = [logits_RV.clone() for logits_RV in logits_M]
    row = vector(0.0, 0, 1, delta=(1.0, 0.5, 0.0), kind=kind, top_p=top_p)
    found_RV = both(logits_M, [row] * rows, [3], at_once=1)
    if kind == BASE_FILTER:
        assert found_RV[2].isfinite().sum() == 299
        assert (found_RV[3, 10:20] == 9.0).all()


def test_a_nucleus_of_one_holds_what_sums_in_float32_would_lose() -> None:
    base_RV = drawn((300,), 1)[0]
    base_RV[0, 7], base_RV[0, 9] = 60.0, -INFINITE
    found_RV = both([base_RV, base_RV], [vector(0.0, 1.0, kind=BASE_FILTER, top_p=1.0)])
    assert found_RV.isfinite().sum() == 299


def test_rows_that_are_said_to_have_a_filter_may_have_none() -> None:
    logits_M = drawn((300, 300), 3)
    vectors = [vector(1.0, 0), vector(1.0, -0.5), vector(1.0, 0.5, kind=BASE_FILTER, top_p=0.4)]
    blended = Blending(SharedIds.of(300, [4], CPU), torch.tensor(vectors), Rows.of([2, 1, 0], 3, CPU))
    blended.add(*(Logits(member, logits_RV.clone()) for member, logits_RV in enumerate(logits_M)))
    assert_exact(blended.finish(), logits_M, vectors, [4])


def test_members_come_in_the_familys_order() -> None:
    blended = Blending(SharedIds.of(300, [], CPU), torch.zeros(1, 8))
    blended.add(Logits(1, torch.zeros(1, 300)))
    for member in (0, 1):
        with pytest.raises(AssertionError, match="order"):
            blended.add(Logits(member, torch.zeros(1, 300)))


def scored_in_torch(blended_RV: torch.Tensor, targets_R: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `engine.scoring` does."""
    total_R = blended_RV.logsumexp(dim=-1)
    chosen_R1 = blended_RV.gather(-1, targets_R.unsqueeze(-1))
    ranks_R = (blended_RV > chosen_R1).sum(dim=-1, dtype=torch.int32) + 1
    return chosen_R1.squeeze(-1) - total_R, blended_RV.amax(dim=-1) - total_R, ranks_R


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_the_blended_rows(dtype: torch.dtype) -> None:
    logits_M = drawn((301, 290, 310), 6, dtype)
    logits_M[1][4, 17] = NAN
    targets_R = torch.tensor([0, 300, 5, 150, 20, int((logits_M[0][5] - logits_M[1][5].mean()).argmax())])
    unshared = [5, *range(290, 301)]
    vectors = [vector(1.0, -1, 1), vector(1.0, 0, 0), vector(0.0, 0, 1), vector(0.0, 1, 0)]
    vocabulary = SharedIds.of(301, unshared, CPU)
    found = score(
        vocabulary,
        [Logits(m, logits_RV) for m, logits_RV in enumerate(logits_M)],
        torch.tensor(vectors),
        targets_R,
    )
    for k, numbers in enumerate(vectors):
        blended_RV = in_torch(logits_M, [numbers] * 6, unshared)
        chosen_R, likeliest_R, ranks_R = scored_in_torch(blended_RV, targets_R)
        for each, expected_R in ((found.chosen[k], chosen_R), (found.likeliest[k], likeliest_R)):
            torch.testing.assert_close(each, expected_R, atol=1e-5, rtol=1e-6, equal_nan=True)
        assert found.ranks[k].tolist() == ranks_R.tolist()
    again = score_blended(vocabulary, blended_RV, targets_R)
    torch.testing.assert_close(again.chosen, found.chosen[-1:], equal_nan=True)
    torch.testing.assert_close(again.likeliest, found.likeliest[-1:], equal_nan=True)
    assert torch.equal(again.ranks, found.ranks[-1:])


def test_scores_need_no_member_that_no_vector_reads() -> None:
    base_RV, _, expert_RV = drawn((300, 300, 300), 2)
    targets_R = torch.tensor([1, 299])
    vectors_KW = torch.tensor([vector(1.0, 0, 0.5), vector(0.0, 0, 1)])
    logits = [Logits(0, base_RV), Logits(2, expert_RV)]
    found = score(SharedIds.of(300, [], CPU), logits, vectors_KW, targets_R)
    torch.testing.assert_close(found.chosen[0], scored_in_torch(base_RV + 0.5 * expert_RV, targets_R)[0])
    torch.testing.assert_close(found.chosen[1], scored_in_torch(expert_RV, targets_R)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [90, 301])
def test_a_report_compares_rows_with_the_bases(size: int, dtype: torch.dtype) -> None:
    [base_RV] = drawn((size,), 7, dtype)
    [blended_RV] = drawn((size,), 7, torch.float32)
    blended_RV[0] = base_RV[0].float()
    blended_RV[1, : size // 2] = -INFINITE
    blended_RV[2] = base_RV[2].float() + 40
    blended_RV[3, [8, 80]] = base_RV[3, [80, 8]] = 50  # Of equals, the first.
    base_RV[4, 5] = -INFINITE  # What the base never says is infinitely far from it.
    blended_RV[5, :] = -INFINITE
    blended_RV[5, 7] = 3
    base_RV[6, 9] = blended_RV[6, 9] = -INFINITE
    rows = [6, 0, 2, 5, 1, 3, 4]
    rows_N = torch.tensor(rows, dtype=torch.int32)
    found = report_kernels.compare(blended_RV, rows_N, base_RV[rows])
    exact = compare(blended_RV[rows].double(), base_RV[rows])
    torch.testing.assert_close(found, exact.float(), atol=1e-5, rtol=1e-5)
    assert found[1].tolist() == [0, 0] and found[5, 0] == 0 and found[6, 1] == INFINITE


def test_a_report_of_a_broken_row_ends() -> None:
    blended_RV = torch.full((1, 300), NAN)
    report_kernels.compare(blended_RV, torch.zeros(1, dtype=torch.int32), torch.zeros(1, 300))
