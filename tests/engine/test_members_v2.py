"""What the host does in a step does not grow with the batch."""

import gc
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from eft_server.engine.worker.member_inputs import Inputs
from eft_server.engine.worker.member_prompts import Step
from eft_server.engine.worker.v2 import graphs
from eft_server.engine.worker.v2.graphs import GraphInputs
from eft_server.engine.worker.v2.members import Members

pytestmark = pytest.mark.engine

CPU = torch.device("cpu")
MEMBERS = 3
MOST = 512


class AnyOne(dict[Any, Any]):
    """Whatever is asked for, it has the same."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self._value = value

    def __missing__(self, key: Any) -> Any:
        return self._value


class Graphs:
    """Every batch has a graph, of its own size."""

    def __init__(self) -> None:
        self.by_member = AnyOne(None)

    def shape_for(self, requests: int, tokens: int, uniform: int | None) -> BatchExecutionDescriptor:
        assert uniform == 1
        return BatchExecutionDescriptor(CUDAGraphMode.FULL, tokens, requests, 1)


@pytest.fixture
def built() -> list[Any]:
    """What attention's builders are told."""
    return []


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch, built: list[Any]) -> Members:
    """As a runner has them, with kernels and attention's builders that do nothing."""
    monkeypatch.setattr(graphs, "_fill_kernel", AnyOne(lambda *_, **__: None))
    inputs = Inputs([99] * MEMBERS, MOST, CPU)
    group = SimpleNamespace(
        kv_cache_group_id=0,
        kv_cache_spec=SimpleNamespace(block_size=16),
        build_metadata=built.append,
    )
    attention: Any = {
        name: SimpleNamespace(groups=[group], by_layer=lambda values: {"layer": values[0]})
        for name in ("base", "ref", "expert")
    }
    tables: Any = SimpleNamespace(
        max_num_reqs=MOST,
        block_sizes=[16],
        input_block_tables=[torch.zeros((MOST, 4), dtype=torch.int32)],
    )
    found = Members.__new__(Members)
    found.attention, found.tables, found.graphs = attention, tables, cast(Any, Graphs())
    offsets = torch.zeros((MOST, MEMBERS), dtype=torch.int32)
    found.inputs = GraphInputs(SimpleNamespace(inputs=inputs), attention, tables, offsets, cast(Any, None))
    return found


def calls_of_a_step(members: Members, requests: int) -> int:
    """How many functions are called, Python's and others', to prepare a step in which so many requests decode.

    Every other one needs the expert and the reference, at positions of their own.
    """
    offsets_RM = np.zeros((requests, MEMBERS), dtype=np.int64)
    offsets_RM[::2, 1] = 7
    needed_RM = np.ones((requests, MEMBERS), dtype=bool)
    needed_RM[1::2, 1:] = False
    computed_R = np.full(requests, 50)
    scheduled_R = np.ones(requests, dtype=np.int32)
    step = Step(
        needed_RM,
        offsets_RM,
        np.zeros(requests, dtype=bool),
        {},
        computed_R,
        scheduled_R,
        torch.zeros(requests, dtype=torch.int32),
        torch.zeros(requests, dtype=torch.int64),
        torch.full((requests,), 51, dtype=torch.int32),
        [members.tables.input_block_tables[0][:requests]],
        [16],
    )
    batch: Any = SimpleNamespace(
        is_prefilling_np=np.zeros(requests, dtype=bool),
        prefill_runs_as_decode_np=None,
        idx_mapping=torch.arange(requests),
        query_start_loc=torch.arange(requests + 1, dtype=torch.int32),
    )
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # It would call what waits for the end of others' objects.
    sys.setprofile(count)
    try:
        parts, idle = members.parts(step, batch, torch.zeros(1), lambda _: {})
    finally:
        sys.setprofile(None)
        gc.enable()
    assert not idle
    assert [parts[name].rows_T is None for name in members.attention] == [True, False, False]  # type: ignore[union-attr]
    return calls


def test_as_many_calls_for_512_requests_as_for_two(members: Members) -> None:
    calls_of_a_step(members, 2)  # What is made once.
    assert calls_of_a_step(members, MOST) == calls_of_a_step(members, 2)


def test_builders_bring_what_graphs_read_up_to_date_in_each_step(members: Members, built: list[Any]) -> None:
    """Some keep arrays of their own (FlashAttention 3, FlashInfer), which a replay reads."""
    calls_of_a_step(members, 4)
    assert [(common.num_reqs, common.max_seq_len) for common in built] == [(4, 51), (2, 44), (2, 51)]
    assert [common.seq_lens_cpu_upper_bound.tolist() for common in built] == [[51] * 4, [44] * 2, [51] * 2]
    assert not any(common.is_prefilling.any() for common in built)
