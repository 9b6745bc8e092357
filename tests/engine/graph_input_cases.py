"""What `test_blend_kernels.py` runs under Triton's interpreter: the arrays that members' graphs read, against NumPy."""

import random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from eft_server.engine.worker.member_inputs import Inputs
from eft_server.engine.worker.v2.graphs import GraphBatch, GraphInputs, GraphPart

CPU = torch.device("cpu")
LAST_IDS = (99, 60, 99)
MOST, WIDTH, TABLE_BLOCK, CACHE_BLOCK = 9, 12, 4, 8
JUNK = 77


def inputs_of_three() -> tuple[GraphInputs, Inputs]:
    """Arrays that hold what another step has left there."""
    inputs = Inputs(LAST_IDS, 64, CPU)
    for values in (*inputs.ids_M, *inputs.positions_M):
        values.fill_(JUNK)
    group = SimpleNamespace(
        kv_cache_group_id=0,
        kv_cache_spec=SimpleNamespace(block_size=CACHE_BLOCK),
        build_metadata=lambda common: common,
    )
    attention: Any = {
        name: SimpleNamespace(groups=[group], by_layer=lambda values: {"layer": values[0]}) for name in "bra"
    }
    tables: Any = SimpleNamespace(
        max_num_reqs=MOST,
        block_sizes=[TABLE_BLOCK],
        input_block_tables=[torch.zeros((MOST, WIDTH), dtype=torch.int32)],
    )
    offsets = torch.tensor([[0, 3, 9]] * 4 + [[0, 0, 17]] * 5, dtype=torch.int32)
    made = GraphInputs(SimpleNamespace(inputs=inputs), attention, tables, offsets, cast(Any, None))
    made._block_tables[0].fill_(JUNK)
    made._slots[0].fill_(JUNK)
    made._lengths_MR.fill_(JUNK)
    return made, inputs


@pytest.mark.parametrize("bounded", [False, True], ids=["step", "draft"])
@pytest.mark.parametrize("query", [1, 3, None], ids=["decode", "verify", "mixed"])
def test_members_arrays_are_those_of_their_own_positions(query: int | None, *, bounded: bool) -> None:
    drawn = random.Random(5)
    made, inputs = inputs_of_three()
    slots = [7, 2, 5, 0]
    scheduled = [query or drawn.choice((1, 4, 7)) for _ in slots]
    computed = [drawn.randint(20, 30) for _ in slots]
    starts = np.cumsum([0, *scheduled])
    ids = np.array([drawn.randint(50, 99) for _ in range(starts[-1])], dtype=np.int32)
    positions = np.concatenate([np.arange(c, c + n) for c, n in zip(computed, scheduled, strict=True)])
    table = np.array(drawn.sample(range(1, 99), len(slots) * WIDTH), dtype=np.int32).reshape(-1, WIDTH)
    owned = np.array([0, 6, 7, WIDTH], dtype=np.int32)
    batch = GraphBatch(
        torch.tensor(slots),
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy((np.array(computed) + scheduled).astype(np.int32)),
        [torch.from_numpy(table)],
        [torch.from_numpy(owned)] if bounded else None,
    )
    chosen = {0: [0, 1, 2, 3], 2: [1, 3]}
    parts = []
    for member, requests in chosen.items():
        counts = np.array([scheduled[request] for request in requests])
        shape = BatchExecutionDescriptor(CUDAGraphMode.FULL, 40, len(requests) + 2, query)
        lengths = np.array([computed[request] + scheduled[request] for request in requests])
        parts.append(GraphPart(member, np.array(requests), counts, lengths, 48, shape))
    made.fill(parts, batch)
    for part in parts:
        check(made, inputs, part, batch, bounded=bounded)
    assert (inputs.ids_M[1] == JUNK).all(), "nobody needs the second"


def check(made: GraphInputs, inputs: Inputs, part: GraphPart, batch: GraphBatch, *, bounded: bool) -> None:
    """One member's arrays, request by request, and its padding."""
    member, total = part.member, int(part.counts.sum())
    common: Any = made.context(part)["attn_metadata"]["layer"]
    expected_starts = [0, *part.counts.cumsum().tolist(), *[total] * (part.padded - len(part.requests))]
    assert common.query_start_loc.tolist() == common.query_start_loc_cpu.tolist() == expected_starts
    own_ids, own_positions = (values.tolist() for values in inputs.of(member, 40))
    slots = common.slot_mapping.tolist()
    for row, request in enumerate(part.requests):
        offset = int(made._offset_QM[batch.slot_R[request], member])
        end = int(batch.starts_R[request + 1])
        owned = int(batch.owned[0][request]) if batch.owned is not None else WIDTH
        table = batch.tables[0][request].tolist()
        for own, token in zip(
            range(expected_starts[row], expected_starts[row + 1]),
            range(end - int(part.counts[row]), end),
            strict=True,
        ):
            position = int(batch.positions_T[token])
            assert own_ids[own] == min(int(batch.ids_T[token]), LAST_IDS[member])
            assert own_positions[own] == position - offset
            place = position - offset % CACHE_BLOCK
            block = place // TABLE_BLOCK
            right = table[block] * TABLE_BLOCK + place % TABLE_BLOCK if block < owned else -1
            assert slots[own] == right
        length = int(batch.lengths_R[request])
        assert common.seq_lens[row] == length - offset
        shift = offset // CACHE_BLOCK * (CACHE_BLOCK // TABLE_BLOCK)
        used = -(-(length - offset % CACHE_BLOCK) // TABLE_BLOCK)
        kept = [entry if shift + place < owned else 0 for place, entry in enumerate(table[shift:used])]
        assert common.block_table_tensor[row].tolist()[: len(kept)] == kept
    assert common.seq_lens[len(part.requests) :].tolist() == [0, 0]
    assert common.block_table_tensor[len(part.requests) :].sum() == 0
    assert slots[total:] == [-1] * (40 - total)
    assert own_ids[total:] == own_positions[total:] == [0] * (40 - total)
    assert inputs.padding_M[member][:40].tolist() == [False] * total + [True] * (40 - total)
    upper = common.seq_lens_cpu_upper_bound.tolist()
    assert upper == [*part.lengths.tolist(), 0, 0]
    assert (common.max_seq_len, common.max_query_len) == (48, int(part.counts.max()))
    assert (common.num_reqs, common.num_actual_tokens) == (part.padded, 40)
