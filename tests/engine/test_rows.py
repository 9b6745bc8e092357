"""Heads run on the rows that need them, and what a step's logits take of memory."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from eft_server.behaviour.equation import blend
from eft_server.bench.launches import Launches
from eft_server.engine.worker import rows
from eft_server.engine.worker.columns import counting, split_vectors
from eft_server.engine.worker.measures.reporting import compare
from eft_server.engine.worker.rows import RowBlender
from eft_server.engine.worker.v2.blending import SharedIds
from eft_server.engine.worker.v2.rows import KernelBlender, Needs

pytestmark = pytest.mark.engine

SIZES = (96, 93, 112, 96)
"""Ids of each member's head."""

UNSHARED = torch.tensor([93, 94, 95])
NOTHING = (0.0,) * 6
BASE = (1.0, 0.0, 0.0, 0.0, *NOTHING)
UP_SCALED = (1.0, -1.0, 1.0, 0.0, *NOTHING)
ALL = (1.0, -1.5, 0.9, 0.6, *NOTHING)
ALONE = (0.0, 0.0, 0.0, 1.0, *NOTHING)
BY_EXPERT = (0.0, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0, 0.6)
BY_BASE = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.5)
NARROW = (0.0, 1.0, 0.0, 0.0, *NOTHING)
WIDE = (0.0, 0.0, 1.0, 0.0, *NOTHING)
ABSENT = (0.0, 0.0, 0.0, 0.0, *NOTHING)


class Heads:
    """Random ones, which note how many rows they were asked for."""

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        rng = torch.Generator().manual_seed(0)
        self.weights = [torch.randn((8, size), generator=rng) for size in sizes]
        self.asked = [0] * len(sizes)

    def of(self, member: int) -> object:
        def head(hidden_NH: torch.Tensor) -> torch.Tensor:
            self.asked[member] += len(hidden_NH)
            # Row by row: a product of matrices adds up in another order where it has other rows.
            return torch.stack([row @ self.weights[member] for row in hidden_NH])

        return head

    @property
    def all(self) -> list[object]:
        return [self.of(member) for member in range(len(self.weights))]


def hidden(count: int, members: int = 4) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn((count, 8), generator=rng) for _ in range(members)]


@pytest.mark.parametrize(
    "vectors",
    [
        [BASE] * 3,
        [UP_SCALED, UP_SCALED],
        [ALONE] * 2,
        [NARROW] * 2,
        [WIDE] * 2,
        [BASE, UP_SCALED, ALL, ALONE, BASE],
        [BY_EXPERT, BASE, BY_BASE, ALL, ABSENT, UP_SCALED],
    ],
    ids=["base", "up-scaled", "alone", "narrow", "wide", "mixed", "filtered"],
)
def test_rows_are_what_all_heads_on_all_rows_would_give(vectors: list[tuple[float, ...]]) -> None:
    heads, hidden_M = Heads(), hidden(len(vectors))
    vector_RW = torch.tensor(vectors)
    found = RowBlender(heads.all, UNSHARED, SIZES[0]).blend(hidden_M, vector_RW)  # type: ignore[arg-type]
    needed = np.array([counting(vector) for vector in vectors]).sum(axis=0).tolist()
    assert heads.asked == needed
    everything = [head(states) for head, states in zip(Heads().all, hidden_M, strict=True)]  # type: ignore[operator]
    expected = blend(everything, split_vectors(vector_RW)[0], UNSHARED, split_vectors(vector_RW)[1])
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("vector", [BASE, NARROW, WIDE], ids=["base", "narrow", "wide"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_rows_of_one_member_that_are_broken_are_nan_throughout(
    vector: tuple[float, ...], broken: float
) -> None:
    hidden_M = hidden(3)
    for states in hidden_M:
        states[1, 0] = broken
    found = RowBlender(Heads().all, UNSHARED, SIZES[0]).blend(hidden_M, torch.tensor([vector] * 3))  # type: ignore[arg-type]
    assert found is not None
    assert found.isnan().all(dim=-1).tolist() == [False, True, False]
    assert not found[0].isnan().any()


def test_many_rows_are_blended_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vector_RW = torch.tensor([UP_SCALED, ALL, BASE, BY_EXPERT, ALONE, BASE, UP_SCALED])
    blender = RowBlender(Heads().all, UNSHARED, SIZES[0])  # type: ignore[arg-type]
    whole = blender.blend(hidden(7), vector_RW)
    monkeypatch.setattr(rows, "_LOGITS_AT_ONCE", 3 * SIZES[0])
    in_parts = blender.blend(hidden(7), vector_RW)
    assert whole is not None and in_parts is not None
    assert torch.equal(whole, in_parts)


REPORTED = [[BASE] * 3, [ALONE] * 3, [UP_SCALED] * 3, [BY_EXPERT, ALONE, BY_BASE], [ALONE, BASE, ALONE]]


@pytest.mark.parametrize("reporting", [[True, False, True], [True] * 3], ids=["some", "all"])
@pytest.mark.parametrize("vectors", REPORTED, ids=["base", "alone", "alike", "filtered", "mixed"])
def test_a_report_runs_the_bases_head_on_its_rows_and_no_others(
    vectors: list[tuple[float, ...]], reporting: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, heads, hidden_M = Heads(), Heads(), hidden(3)
    vector_RW = torch.tensor(vectors)
    expected = RowBlender(silent.all, UNSHARED, SIZES[0]).blend(hidden_M, vector_RW)  # type: ignore[arg-type]
    for at_once in (3, 1):
        heads.asked = [0] * 4
        monkeypatch.setattr(rows, "rows_at_once", lambda _, at_once=at_once: at_once)
        blender = RowBlender(heads.all, UNSHARED, SIZES[0])  # type: ignore[arg-type]
        blender.reporting_R = torch.tensor(reporting)
        found = blender.blend(hidden_M, vector_RW)
        assert found is not None and expected is not None
        assert torch.equal(found, expected)
        base_rows = sum(counting(v)[0] or asks for v, asks in zip(vectors, reporting, strict=True))
        assert heads.asked == [base_rows, *silent.asked[1:]]
        figures = blender.take_figures()
        base_RV = Heads().of(0)(hidden_M[0])  # type: ignore[operator]
        assert figures is not None
        assert torch.equal(figures, compare(expected[reporting], base_RV[reporting]))
        blender.blend(hidden_M, vector_RW)
        assert blender.take_figures() is None, "the next rows are not compared"


def test_off_the_first_rank_every_head_is_asked_all_the_same() -> None:
    """A head that is sharded waits for the parts of all ranks."""
    asked = []

    def nowhere(member: int) -> object:
        return lambda _: asked.append(member)

    heads = [nowhere(member) for member in range(4)]
    blender = RowBlender(heads, UNSHARED, SIZES[0])  # type: ignore[arg-type]
    assert blender.blend(hidden(2), torch.tensor([UP_SCALED, BASE])) is None
    assert asked == [0, 1, 2]


def test_scores_of_several_vectors_take_each_head_once() -> None:
    heads, vectors = Heads(), [BASE, UP_SCALED, BY_EXPERT]
    targets = torch.tensor([5, 93])
    blender = RowBlender(heads.all, UNSHARED, SIZES[0])  # type: ignore[arg-type]
    found = blender.score(hidden(2), vectors, targets)
    assert found is not None
    assert heads.asked == [2, 2, 2, 0]
    for index, vector in enumerate(vectors):
        one = RowBlender(Heads().all, UNSHARED, SIZES[0])  # type: ignore[arg-type]
        blended = one.blend(hidden(2), torch.tensor([vector] * 2))
        assert blended is not None
        expected = blended.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        assert found.chosen[index].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 37, 300])
@pytest.mark.parametrize("members", [2, 3, 4, 7])
def test_no_more_memory_than_two_rows_of_floats_and_one_members_logits(
    members: int, count: int, dtype: torch.dtype, *, filtered: bool
) -> None:
    size = 20_000
    # Each head gives logits of its own, as a product of matrices does.
    heads = [lambda states: states.new_zeros((len(states), size)) for _ in range(members)]
    blender = KernelBlender(heads, SharedIds.of(size, range(100), torch.device("cpu")))
    delta = [1.0, -1.0] + [0.0] * (members - 2)
    vector = [*([0.5] * members), *(delta if filtered else [0.0] * members), float(filtered), 0.9]
    vector_RW = torch.tensor([vector] * count)
    needs = Needs.alike(counting(vector), count, filtered=filtered)
    blender.needs = lambda _: needs
    states = [torch.zeros((count, 8), dtype=dtype) for _ in range(members)]
    launches = Launches()
    with launches, launches.of_our_kernels(run=False):
        assert blender.blend(states, vector_RW) is not None
    assert launches.waits == 0
    # What kernels note of each block of ids is some hundredths.
    assert launches.peak_bytes <= 1.03 * count * size * (2 * 4 + dtype.itemsize)


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("reporting", [[3], range(37)], ids=["one", "all"])
def test_a_report_costs_three_launches_a_row_of_floats_and_no_wait(
    reporting: Sequence[int], *, filtered: bool
) -> None:
    count, size, members = 37, 20_000, 3
    heads = [lambda states: states.new_zeros((len(states), size)) for _ in range(members)]
    blender = KernelBlender(heads, SharedIds.of(size, range(100), torch.device("cpu")))
    vector = [0.5, 0.5, 0.5, 1.0, -1.0, 0.0, float(filtered), 0.9]
    costs = []
    for asks_R in (None, np.isin(np.arange(count), reporting)):
        needs = Needs(np.ones((count, members), dtype=bool), np.full(count, filtered), asks_R)
        blender.needs = lambda _, needs=needs: needs
        launches = Launches()
        with launches, launches.of_our_kernels(run=False):
            assert (
                blender.blend([torch.zeros((count, 8))] * members, torch.tensor([vector] * count)) is not None
            )
        figures = blender.take_figures()
        assert (figures is None) == (asks_R is None)
        costs.append(launches)
        assert launches.waits == 0
    without, with_report = costs
    assert with_report.count == without.count + 3
    assert with_report.peak_bytes - without.peak_bytes <= 1.03 * len(reporting) * size * 4
