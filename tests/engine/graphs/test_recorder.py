"""The emulated graphs themselves, without vLLM."""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ..driver import V2_ENVIRONMENT
from .arena import ALIGNMENT, Arena
from .recorder import OUTSIDE, CaptureError, CUDAGraph, graph, in_an_arena, new_pool, remade, weakly


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> Iterator[None]:
    """A capture begins with a collection of garbage, which looks through all that has been imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def captured(function: Callable[[], torch.Tensor], pool: object = None) -> tuple[CUDAGraph, torch.Tensor]:
    """A graph of one function, and what it returned in the capture."""
    new = CUDAGraph()
    with graph(new, pool):
        result = function()
    return new, result


def is_nothing(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds poison alone."""
    return bool(tensor.isnan().all()) if tensor.is_floating_point() else bool((tensor == -1).all())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_replay_reads_and_writes_the_addresses_of_the_capture(mode: Callable[[], object]) -> None:
    with mode():
        x, weight, out = torch.ones(2, 3), torch.full((4, 3), 2.0), torch.zeros(2, 4)

        def forward() -> torch.Tensor:
            hidden = torch.nn.functional.linear(x, weight).relu()
            out.copy_(hidden)
            return hidden * 10

        new, result = captured(forward)
        assert is_nothing(result), "kernels of a capture have not run"
        x[0] = 5
        new.replay()
        assert out.tolist() == [[30.0] * 4, [6.0] * 4]
        assert result.tolist() == [[300.0] * 4, [60.0] * 4]
        x[1] = torch.tensor([1.0, 0.0, -1.0])
        new.replay()
        assert out.tolist() == [[30.0] * 4, [0.0] * 4]


def test_views_are_no_kernels_and_python_does_not_run_again() -> None:
    calls = []

    def forward() -> torch.Tensor:
        calls.append(1)
        return (x.view(6)[1:].reshape(5, 1).t() + 1).split(2, dim=1)[1]

    x = torch.arange(6.0)
    new, result = captured(forward)
    assert len(new) == 1
    new.replay()
    new.replay()
    assert calls == [1]
    assert result.tolist() == [[4.0, 5.0]]


def test_outputs_keep_their_strides_and_share_what_they_shared() -> None:
    x = torch.rand(3, 4, 5)
    new, result = captured(lambda: x.transpose(0, 2).clone() + 1)
    new.replay()
    assert result.stride() == (x.transpose(0, 2) + 1).stride()
    assert torch.equal(result, x.transpose(0, 2) + 1)


def test_memory_that_was_only_allocated_holds_nothing() -> None:
    new, result = captured(lambda: torch.empty(3))
    assert len(new) == 0
    assert is_nothing(result)


def test_the_next_capture_takes_what_is_held_weakly_and_overwrites_it() -> None:
    """As the last pieces of two members of one shape do in one pool of graphs."""
    pool, x = new_pool(), torch.zeros(4, 64)
    graphs, weak = [], []
    for member in (1, 2, 3):
        new, result = captured(lambda member=member: x + member, pool)  # type: ignore[misc]
        graphs.append(new)
        weak.append(weakly(result))
        del result
    for member in graphs:
        member.replay()
    assert [tensor[0, 0].item() for tensor in weak] == [3, 3, 3]
    graphs[0].replay()
    assert [tensor[0, 0].item() for tensor in weak] == [1, 1, 1]


def test_what_is_held_stays_and_what_is_not_is_poisoned_by_any_later_graph_of_the_pool() -> None:
    pool, x = new_pool(), torch.zeros(64)
    first, held = captured(lambda: x + 1, pool)
    second, result = captured(lambda: x + 2, pool)
    weak = weakly(result)
    del result
    third, small = captured(lambda: torch.ones(2) + x[:2], pool)
    first.replay()
    second.replay()
    assert weak.tolist() == [2.0] * 64, "nobody has written there since"
    third.replay()
    assert small.tolist() == [1.0, 1.0]
    assert is_nothing(weak[ALIGNMENT // 4 :]), "the third graph might have taken all of it"
    assert held.tolist() == [1.0] * 64


def test_letting_go_of_a_tensor_leaves_what_a_replay_wrote_there() -> None:
    x = torch.zeros(64)
    new, result = captured(lambda: x + 1)
    weak = weakly(result)
    new.replay()
    del result
    assert weak.tolist() == [1.0] * 64


def test_graphs_without_a_pool_do_not_share_one() -> None:
    x = torch.zeros(8)
    (first, result), (second, _) = captured(lambda: x + 1), captured(lambda: x + 2)
    weak = weakly(result)
    del result
    first.replay()
    second.replay()
    assert weak.tolist() == [1.0] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_temporary_of_the_caller_is_stale_in_replays(dtype: torch.dtype) -> None:
    buffer = torch.zeros(8, dtype=dtype)
    arguments = [buffer.clamp(max=3)]
    new, result = captured(lambda: arguments[0] * 1)
    new.replay()
    assert result.tolist() == [0] * 8
    arguments.clear()
    others = [buffer.clamp(max=3) for _ in range(8)]
    buffer.fill_(2)
    new.replay()
    assert is_nothing(result)
    assert not any(is_nothing(other) for other in others)


def test_what_still_has_an_owner_is_never_poisoned() -> None:
    owner = torch.ones(16)
    new, result = captured(lambda: owner[4:8].view(2, 2) + 1)
    gc.collect()
    for _ in range(2):
        new.replay()
        assert result.tolist() == [[2.0, 2.0]] * 2
    assert owner.tolist() == [1.0] * 16
    assert OUTSIDE.poison_dead([owner.data_ptr()]) == []


def test_a_tensor_made_of_hosts_numbers_in_a_capture_is_stale() -> None:
    x = torch.ones(2)
    new, result = captured(lambda: x * torch.tensor([2.0, 3.0]))
    new.replay()
    assert is_nothing(result)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: int(x.max()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.masked_select(x, x > 0),
    ],
)
def test_what_waits_for_the_device_is_refused_in_a_capture(waits: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(3)
    waits(x)
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"), graph(CUDAGraph()):
        waits(x)
    assert CUDAGraph.capturing is None
    waits(x)


def test_graphs_are_not_captured_or_replayed_in_a_capture() -> None:
    x = torch.ones(3)
    inner, _ = captured(lambda: x + 1)
    with pytest.raises(CaptureError, match="captured already"), graph(CUDAGraph()), graph(CUDAGraph()):
        pass
    with pytest.raises(CaptureError, match="replayed into"), graph(CUDAGraph()):
        inner.replay()


def test_functions_that_hide_their_kernels_are_one_kernel() -> None:
    x, out = torch.ones(4), torch.zeros(4)
    new = CUDAGraph()

    def hidden(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target.numpy()[:] = source.numpy() * 2
        return target + 1

    with graph(new):
        result = new.run(hidden, (x, out), {}, writes=True)
    assert in_an_arena(result.data_ptr())
    x.fill_(3)
    new.replay()
    assert len(new) == 1
    assert out.tolist() == [6.0] * 4
    assert result.tolist() == [7.0] * 4


def test_arguments_that_are_made_for_each_step_are_made_in_each_replay() -> None:
    lengths, x = torch.tensor([1, 2]), torch.ones(2)
    plans = [remade(lambda lengths: lengths * 10, lengths=lengths)]
    new, result = captured(lambda: x * plans[0])
    plans.clear()
    lengths.fill_(7)
    new.replay()
    assert result.tolist() == [70.0, 70.0]


def test_kernels_of_triton_are_recorded() -> None:
    folder = Path(__file__).parents[1]
    path = os.pathsep.join([str(folder), V2_ENVIRONMENT["PYTHONPATH"]])
    environment = os.environ | V2_ENVIRONMENT | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", "graphs.triton_kernel"], env=environment, check=True)


def test_an_arena_gives_the_smallest_block_that_fits_and_joins_neighbours() -> None:
    arena = Arena(8 * ALIGNMENT)
    first, second, third = (arena.take(size * ALIGNMENT) for size in (2, 1, 3))
    places = [storage.data_ptr() for storage in (first, second, third)]
    del second
    small = arena.take(5)
    assert small.data_ptr() == places[1]
    assert len(small) == 5
    del first, small
    whole = arena.take(3 * ALIGNMENT)
    assert whole.data_ptr() == places[0]
    assert arena.free_blocks() == []
    with pytest.raises(MemoryError, match="do not fit"):
        arena.take(3 * ALIGNMENT)
    view = torch.empty(0).set_(third, 0, (6,))
    view.fill_(1.0)
    del third
    assert arena.free_blocks() == []
    del view
    assert math.prod(arena.take(3 * ALIGNMENT)[:4]) == 255**4
