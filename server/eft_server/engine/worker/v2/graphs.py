"""Separate CUDA graphs for each member, on vLLM's Model Runner V2.

vLLM would capture the composite as one graph, which runs all members on all requests. Here each member has separate
graphs, for each size that vLLM captures: a member that is not needed is not replayed, one that some requests need is
replayed on those, and members may be at different positions. A graph reads the member's arrays, which one kernel fills
for all members of a step.

Shape suffixes: M members, K of them in a step, T tokens, R requests, B blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from typing_extensions import override
from vllm.compilation.counter import compilation_counter
from vllm.compilation.cudagraph_pool import capture_pool
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.distributed.parallel_state import graph_capture
from vllm.forward_context import set_forward_context
from vllm.model_executor.offloader.base import get_offloader
from vllm.triton_utils import tl, triton
from vllm.utils.math_utils import next_power_of_2
from vllm.utils.torch_utils import async_tensor_h2d, current_stream
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.buffer_utils import _load_ptr
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager

from eft_server.engine.worker.member_prompts import NO_SLOT, MemberAttention, cache_block

_HEADER = 4
"""Numbers in a row of the plan before the requests: member, requests, requests and tokens including padding."""


@dataclass(frozen=True)
class GraphPart:
    """A member's part of a step, in the shape of a graph.

    Attributes:
        member: its place.
        requests: the step's requests on which it runs, ascending.
        counts: the number of tokens that it reads of each, always the last ones of the step.
        lengths: at least each request's length including those, in the member's tokens.
        longest: at least the length of the longest text.
        shape: the graph's shape.
    """

    member: int
    requests: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    longest: int
    shape: BatchExecutionDescriptor

    @property
    def padded(self) -> int:
        """Number of requests, including padding."""
        return self.shape.num_reqs or len(self.requests)

    @cached_property
    def starts(self) -> np.ndarray:
        """Each request's first token, followed by padding: int32 (padded + 1,)."""
        starts = np.full(self.padded + 1, self.counts.sum(), dtype=np.int32)
        starts[0] = 0
        starts[1 : len(self.counts) + 1] = self.counts.cumsum()
        return starts


@dataclass(frozen=True)
class GraphBatch:
    """The scheduler's data for a step.

    Attributes:
        slot_R: int64; the runner's slot of each request.
        ids_T: tokens, int32 or int64.
        positions_T: positions, int64.
        starts_R: int32 (R + 1,); each request's first token.
        lengths_R: int32; each request's length with the tokens of this step.
        tables: block tables (R, B) for each group of the KV cache.
        owned: int32 (R,) for each of them; the number of a request's blocks that may be read and written. Default: all.
    """

    slot_R: torch.Tensor
    ids_T: torch.Tensor
    positions_T: torch.Tensor
    starts_R: torch.Tensor
    lengths_R: torch.Tensor
    tables: Sequence[torch.Tensor]
    owned: Sequence[torch.Tensor] | None = None


class GraphInputs:
    """The inputs of graphs, besides ids and positions: arrays at fixed addresses.

    Args:
        model: the composite.
        attention: the members' layers, by name, in the order of the coefficients.
        tables: the runner's block tables.
        offset_QM: int32; each member's distance behind the scheduler in each slot of the runner.
        config: vLLM's config.
    """

    def __init__(
        self,
        model: Any,
        attention: Mapping[str, MemberAttention],
        tables: BlockTables,
        offset_QM: torch.Tensor,
        config: VllmConfig,
    ) -> None:
        self._model, self._tables, self._offset_QM, self._config = model, tables, offset_QM, config
        self._attention = list(attention.values())
        self._names = list(attention)
        device = offset_QM.device
        members, requests = len(attention), tables.max_num_reqs
        tokens, inputs = model.inputs.tokens, model.inputs
        self._addresses_3M = _addresses((inputs.ids_M, inputs.positions_M, inputs.padding_M), device)
        self._last_ids_M = torch.tensor(model.inputs.last_ids, dtype=torch.int32, device=device)
        self._starts_MR = torch.zeros((members, requests + 1), dtype=torch.int32, device=device)
        self._lengths_MR = torch.zeros((members, requests), dtype=torch.int32, device=device)
        self._slots = [
            torch.full((members, tokens), NO_SLOT, dtype=torch.int64, device=device)
            for _ in tables.block_sizes
        ]
        self._block_tables = [
            torch.zeros((members, *table.shape), dtype=torch.int32, device=device)
            for table in tables.input_block_tables
        ]
        self._cache_blocks = {
            group.kv_cache_group_id: cache_block(group) for own in self._attention for group in own.groups
        }

    def fill(self, parts_K: Sequence[GraphPart], batch: GraphBatch) -> None:
        """Write the inputs of some members for a step, in one launch for each group of the KV cache."""
        assert batch.ids_T.is_contiguous() and batch.positions_T.is_contiguous(), (
            "the kernel counts in numbers"
        )
        requests = max(part.padded for part in parts_K)
        plan = np.zeros((len(parts_K), _HEADER + 2 * requests + 1), dtype=np.int32)
        for row, part in zip(plan, parts_K, strict=True):
            row[:_HEADER] = part.member, len(part.requests), part.padded, part.shape.num_tokens
            row[_HEADER : _HEADER + len(part.requests)] = part.requests
            row[_HEADER + requests : _HEADER + requests + part.padded + 1] = part.starts
        plan_KR = async_tensor_h2d(plan, device=batch.slot_R.device)
        for group, table_RB in enumerate(batch.tables):
            _fill_kernel[(len(parts_K), requests + 1)](
                plan_KR,
                plan_KR.stride(0),
                requests,
                batch.slot_R,
                batch.ids_T,
                batch.positions_T,
                batch.starts_R,
                batch.lengths_R,
                self._offset_QM,
                self._offset_QM.stride(0),
                self._last_ids_M,
                self._addresses_3M,
                len(self._names),
                self._starts_MR,
                self._starts_MR.stride(0),
                self._lengths_MR,
                self._lengths_MR.stride(0),
                table_RB,
                table_RB.stride(0),
                table_RB.shape[1],
                self._block_tables[group],
                self._block_tables[group].stride(0),
                self._slots[group],
                self._slots[group].stride(0),
                batch.lengths_R if batch.owned is None else batch.owned[group],
                TABLE_BLOCK=self._tables.block_sizes[group],
                CACHE_BLOCK=self._cache_blocks.get(group, self._tables.block_sizes[group]),
                TOKENS=min(next_power_of_2(max(int(part.counts.max()) for part in parts_K)), 128),
                BOUNDED=batch.owned is not None,
                BLOCK=256,
            )

    def context(self, part: GraphPart, for_capture: bool = False) -> dict[str, Any]:
        """Attention metadata and KV slots of a member's part, for `set_forward_context`."""
        metadata, slots = [], []
        shape, member, padded = part.shape, part.member, part.padded
        upper = np.zeros(padded, dtype=np.int32)
        upper[: len(part.lengths)] = part.lengths
        # Graphs for steps with prompts have to be valid for one prompt that fills the step.
        mixed = for_capture and shape.uniform_token_count is None
        for group in self._attention[member].groups:
            cache = group.kv_cache_group_id
            common = CommonAttentionMetadata(
                query_start_loc=self._starts_MR[member, : padded + 1],
                query_start_loc_cpu=torch.from_numpy(part.starts),
                seq_lens=self._lengths_MR[member, :padded],
                seq_lens_cpu_upper_bound=torch.from_numpy(upper),
                num_reqs=padded,
                num_actual_tokens=shape.num_tokens,
                max_query_len=shape.num_tokens if mixed else int(part.counts.max()),
                max_seq_len=part.longest,
                block_table_tensor=self._block_tables[cache][member, :padded],
                slot_mapping=self._slots[cache][member, : shape.num_tokens],
                positions=self._model.inputs.positions_M[member][: shape.num_tokens],
                is_prefilling=torch.from_numpy(np.diff(part.starts) > (shape.uniform_token_count or 1)),
            )
            build = group.build_metadata_for_cudagraph_capture if for_capture else group.build_metadata
            metadata.append(build(common))
            slots.append(common.slot_mapping)
        by_layer = self._attention[member].by_layer
        return {"attn_metadata": by_layer(metadata), "slot_mapping": by_layer(slots)}

    def forward(self, part: GraphPart, context: Mapping[str, Any]) -> torch.Tensor:
        """Run a member's part; its hidden states go to its first rows. A graph captures this."""
        count = part.shape.num_tokens
        padding_T = self._model.inputs.padding_M[part.member][:count]
        with set_forward_context(vllm_config=self._config, num_tokens=count, is_padding=padding_T, **context):
            states_TH = self._model.run_inputs(self._names[part.member], count)
        own_TH: torch.Tensor = self._model.states(part.member)[:count]
        return own_TH.copy_(states_TH)

    @property
    def nbytes(self) -> int:
        """Size of the arrays, without ids and positions, which are the composite's."""
        arrays = (self._starts_MR, self._lengths_MR, *self._slots, *self._block_tables)
        return sum(array.nbytes for array in arrays)

    def warm_up(self, query: int) -> None:
        """Compile the kernel for decoding in advance, so that no request waits for it."""
        shape = BatchExecutionDescriptor(CUDAGraphMode.FULL, query, 1, query)
        one = np.ones(1, dtype=np.int32)
        part = GraphPart(0, one - 1, query * one, query * one, query, shape)
        device = self._starts_MR.device
        numbers = torch.zeros(max(query, 2), dtype=torch.int64, device=device)
        starts = torch.tensor([0, query], dtype=torch.int32, device=device)
        tables = [table[:1] for table in self._tables.input_block_tables]
        for owned in (None, [starts[:1]] * len(tables)):
            self.fill(
                [part], GraphBatch(numbers[:1], numbers.int(), numbers, starts, starts[1:], tables, owned)
            )

    def states(self, part: GraphPart) -> torch.Tensor:
        """The hidden states written by a member's graph: (T, H)."""
        states_TH: torch.Tensor = self._model.states(part.member)
        return states_TH[: part.counts.sum()]

    def dummy(self, member: int, shape: BatchExecutionDescriptor, length: int) -> GraphPart:
        """A part that fills its shape, for capture: every request reads padding, and writes to no slot.

        Args:
            member: its place.
            shape: the graph's shape.
            length: the length of the longest text for which the graph has to be valid.
        """
        requests = shape.num_reqs or 1
        counts = np.full(requests, shape.num_tokens // requests)
        counts[requests - shape.num_tokens % requests :] += 1
        part = GraphPart(member, np.arange(requests), counts, counts, length, shape)
        device = self._starts_MR.device
        self._starts_MR[member, : requests + 1] = async_tensor_h2d(part.starts, device=device)
        self._lengths_MR[member, :requests] = async_tensor_h2d(counts.astype(np.int32), device=device)
        for slots_MT, table_MRB in zip(self._slots, self._block_tables, strict=True):
            slots_MT[member] = NO_SLOT
            table_MRB[member, :requests] = 0
        for values_T in self._model.inputs.of(member, shape.num_tokens):
            values_T.zero_()
        self._model.inputs.padding_M[member][: shape.num_tokens] = True
        return part


class MemberGraphs(ModelCudaGraphManager):
    """vLLM's graph manager, with separate graphs for each member in place of those of the whole.

    Attributes:
        inputs: the members' inputs.
        members: the number of members.
        drafting: the place of the member that drafts, which also has graphs for one token per request.
        by_member: the graphs.
    """

    inputs: GraphInputs
    members: int
    drafting: int | None
    by_member: dict[tuple[int, BatchExecutionDescriptor], torch.cuda.CUDAGraph]
    draft_shapes: list[BatchExecutionDescriptor]

    def set_up(self, inputs: GraphInputs, members: int, drafting: int | None) -> None:
        """Set the additional attributes after vLLM's manager has been given this class."""
        self.inputs, self.members, self.drafting, self.by_member = inputs, members, drafting, {}
        mode = self.cudagraph_mode
        graphs = bool(mode) and mode.decode_mode() == CUDAGraphMode.FULL
        sizes = self.compilation_config.cudagraph_capture_sizes or []
        self.draft_shapes = [
            BatchExecutionDescriptor(CUDAGraphMode.FULL, size, size, 1)
            for size in sorted(sizes)
            if graphs and drafting is not None and self.decode_query_len > 1 and size <= self.max_num_reqs
        ]

    @override
    def dispatch(
        self, num_reqs: int, num_tokens: int, *args: Any, **options: Any
    ) -> BatchExecutionDescriptor:
        """No graph: Python runs the composite, and replays its members' graphs."""
        return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs)

    def shape_for(self, num_reqs: int, num_tokens: int, uniform: int | None) -> BatchExecutionDescriptor:
        """The shape of the graph that fits a member's part of a step; mode NONE if none does.

        Args:
            num_reqs: number of requests.
            num_tokens: number of their tokens.
            uniform: the number of tokens that each of them decodes; None if they differ, or one is in prefill.
        """
        return super().dispatch(num_reqs, num_tokens, uniform, 0, uniform)

    def draft_shape_for(self, requests: int) -> BatchExecutionDescriptor | None:
        """The shape of the graph that fits one drafted token for each request; None if none does."""
        if not self._graphs_captured:
            return None
        fitting = (shape for shape in self.draft_shapes if shape.num_tokens >= requests)
        return next(fitting, None)

    @torch.inference_mode()
    @override
    def capture(self, *args: Any, **options: Any) -> None:
        """Capture the piecewise graphs of all members as vLLM does, then a full graph of each."""
        whole = self._capture_descs.pop(CUDAGraphMode.FULL, [])
        try:
            super().capture(*args, **options)
        finally:
            if whole:
                self._capture_descs[CUDAGraphMode.FULL] = whole
        # Profiling captures some of the largest, and assumes as much memory for each of the others.
        with graph_capture(device=self.device):
            for shape in whole[: self._max_full_descs_to_capture]:
                before = self._free_memory()
                for member in range(self.members):
                    self._capture_member(member, shape)
                if self._capture_mem_samples is not None:
                    self._capture_mem_samples.append(before - self._free_memory())
            for shape in reversed(self.draft_shapes):
                assert self.drafting is not None
                self._capture_member(self.drafting, shape)
            self.inputs.warm_up(self.decode_query_len)
        self._graphs_captured = True

    def _capture_member(self, member: int, shape: BatchExecutionDescriptor) -> None:
        part = self.inputs.dummy(member, shape, self.vllm_config.model_config.max_model_len)
        self.inputs.forward(part, self.inputs.context(part, for_capture=True))
        context = self.inputs.context(part, for_capture=True)
        graph = torch.cuda.CUDAGraph()
        get_offloader().sync_prev_onload()
        with (
            capture_pool(self.pool, self.vllm_config) as pool,
            torch.cuda.graph(graph, cast(Any, pool), stream=current_stream()),
        ):
            self.inputs.forward(part, context)
            get_offloader().join_after_forward()
        self.by_member[member, shape] = graph
        compilation_counter.num_cudagraph_captured += 1

    def _free_memory(self) -> int:
        if self._capture_mem_samples is None:
            return 0
        torch.accelerator.synchronize()
        return int(torch.accelerator.get_memory_info()[0])

    @override
    def release_graphs(self) -> None:
        """Drop all graphs."""
        super().release_graphs()
        self.by_member.clear()


@dataclass(frozen=True)
class Replay:
    """A member's part of a step that runs as a graph.

    Attributes:
        part: the part, whose inputs have been written.
        graph: its graph.
        rows_T: the step's rows that it reads; None for all of them.
    """

    part: GraphPart
    graph: torch.cuda.CUDAGraph
    rows_T: torch.Tensor | None

    def run(self, model: Any, name: str, states_TH: torch.Tensor) -> None:
        """Replay the graph, and move its rows to their places in the step."""
        get_offloader().sync_prev_onload()
        self.graph.replay()
        if self.rows_T is not None:
            states_TH[self.rows_T] = model.states(self.part.member)[: len(self.rows_T)].clone()


def _addresses(tensors: Sequence[Sequence[torch.Tensor]], device: torch.device) -> torch.Tensor:
    """The addresses of tensors, for a kernel."""
    found = [[tensor.data_ptr() for tensor in row] for row in tensors]
    return torch.tensor(found, dtype=torch.uint64, device=device)


@triton.jit(do_not_specialize=["plan_stride", "plan_requests"])  # type: ignore[untyped-decorator]
def _fill_kernel(
    plan_ptr: tl.tensor,
    plan_stride: tl.tensor,
    plan_requests: tl.tensor,
    slot_of_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    offset_stride: tl.tensor,
    last_id_ptr: tl.tensor,
    addresses_ptr: tl.tensor,
    members: tl.tensor,
    own_starts_ptr: tl.tensor,
    own_starts_stride: tl.tensor,
    own_lengths_ptr: tl.tensor,
    own_lengths_stride: tl.tensor,
    table_ptr: tl.tensor,
    table_stride: tl.tensor,
    table_width: tl.tensor,
    own_table_ptr: tl.tensor,
    own_table_stride: tl.tensor,
    own_slots_ptr: tl.tensor,
    own_slots_stride: tl.tensor,
    owned_ptr: tl.tensor,
    TABLE_BLOCK: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the inputs of one member for one request or for padding: see `GraphInputs.fill`."""
    plan = plan_ptr + tl.program_id(0) * plan_stride
    row = tl.program_id(1)
    member = tl.load(plan).to(tl.int64)
    count = tl.load(plan + 1)
    padded = tl.load(plan + 2)
    if row > padded:
        return
    own_start = tl.load(plan + 4 + plan_requests + row)
    tl.store(own_starts_ptr + member * own_starts_stride + row, own_start)
    own_ids = _load_ptr(addresses_ptr + member, tl.int32)
    own_positions = _load_ptr(addresses_ptr + members + member, tl.int64)
    own_padding = _load_ptr(addresses_ptr + 2 * members + member, tl.int8)
    own_slots = own_slots_ptr + member * own_slots_stride
    if row == padded:
        for first in range(own_start, tl.load(plan + 3), TOKENS):
            token = first + tl.arange(0, TOKENS)
            inside = token < tl.load(plan + 3)
            zero = tl.zeros((TOKENS,), tl.int32)
            tl.store(own_ids + token, zero, mask=inside)
            tl.store(own_positions + token, zero.to(tl.int64), mask=inside)
            tl.store(own_padding + token, (zero + 1).to(tl.int8), mask=inside)
            tl.store(own_slots + token, zero.to(tl.int64) - 1, mask=inside)
        return
    own_length = own_lengths_ptr + member * own_lengths_stride + row
    own_row = own_table_ptr + member * own_table_stride + row.to(tl.int64) * table_width
    if row >= count:
        tl.store(own_length, 0)
        for first in range(0, table_width, BLOCK):
            block = first + tl.arange(0, BLOCK)
            tl.store(own_row + block, tl.zeros((BLOCK,), tl.int32), mask=block < table_width)
        return
    tokens = tl.load(plan + 4 + plan_requests + row + 1) - own_start
    request = tl.load(plan + 4 + row).to(tl.int64)
    offset = tl.load(offset_ptr + tl.load(slot_of_ptr + request) * offset_stride + member)
    length = tl.load(lengths_ptr + request)
    last_id = tl.load(last_id_ptr + member)
    owned = table_width
    if BOUNDED:
        owned = tl.load(owned_ptr + request)
    # The offset moves whole blocks as far as possible; its remainder moves the slots.
    rest = offset % CACHE_BLOCK
    shift = offset // CACHE_BLOCK * (CACHE_BLOCK // TABLE_BLOCK)
    table = table_ptr + request * table_stride
    start = tl.load(starts_ptr + request + 1) - tokens
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < tokens
        ids = tl.load(ids_ptr + start + token, mask=inside, other=0).to(tl.int32)
        position = tl.load(positions_ptr + start + token, mask=inside, other=0)
        target = own_start + token
        tl.store(own_ids + target, tl.minimum(ids, last_id), mask=inside)
        tl.store(own_positions + target, tl.maximum(position - offset, 0), mask=inside)
        tl.store(own_padding + target, tl.zeros((TOKENS,), tl.int8), mask=inside)
        place = position - rest
        writable = inside & (place >= 0) & (place // TABLE_BLOCK < owned)
        block_of = tl.load(table + place // TABLE_BLOCK, mask=writable, other=0).to(tl.int64)
        slot = tl.where(writable, block_of * TABLE_BLOCK + place % TABLE_BLOCK, -1)
        tl.store(own_slots + target, slot, mask=inside)
    tl.store(own_length, length - offset)
    used = tl.minimum((length - rest + TABLE_BLOCK - 1) // TABLE_BLOCK, table_width) - shift
    for first in range(0, used, BLOCK):
        block = first + tl.arange(0, BLOCK)
        blocks = tl.load(table + shift + block, mask=shift + block < tl.minimum(owned, used + shift), other=0)
        tl.store(own_row + block, blocks, mask=block < used)
