"""How each member of a composite runs in a step of vLLM's Model Runner V2: as a graph, or without one.

Shape suffixes: T tokens, R requests, H a member's hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.utils import AttentionGroup

from eft_server.engine.message import Manifest
from eft_server.engine.worker.member_prompts import NO_SLOT, Layout, MemberAttention, Step, idle_rows
from eft_server.engine.worker.v2.graphs import GraphBatch, GraphInputs, GraphPart, MemberGraphs, Replay

Build = Callable[[list[list[AttentionGroup]]], dict[str, Any]]
"""Builds the metadata of a whole step, by layer, from groups of layers."""


@dataclass(frozen=True)
class Pass:
    """A member's part of a step that Python runs, perhaps with piecewise graphs.

    Attributes:
        member: its place.
        ids_T: its tokens.
        positions_T: its positions.
        rows_T: for each of its rows, the row of the step; None if they are the same.
        shape: the shape, including padding.
        context: attention metadata and KV slots.
        config: vLLM's config.
    """

    member: int
    ids_T: torch.Tensor
    positions_T: torch.Tensor
    rows_T: torch.Tensor | None
    shape: BatchExecutionDescriptor
    context: Mapping[str, Any]
    config: VllmConfig

    def run(self, model: Any, name: str, states_TH: torch.Tensor) -> None:
        """Run the member, and write its rows."""
        count, padded = len(self.ids_T), self.shape.num_tokens
        model.inputs.put(self.member, self.ids_T, self.positions_T)
        model.inputs.pad(self.member, count, padded)
        with set_forward_context(
            vllm_config=self.config,
            num_tokens=padded,
            cudagraph_runtime_mode=self.shape.cg_mode,
            batch_descriptor=BatchDescriptor(num_tokens=padded),
            is_padding=model.inputs.padding_M[self.member][:padded],
            **self.context,
        ):
            own_TH = model.run_inputs(name, padded)[:count]
        if self.rows_T is None:
            states_TH.copy_(own_TH)
        else:
            states_TH[self.rows_T] = own_TH


class Members:
    """The members' layers and graphs, once the KV cache exists.

    Args:
        model: the composite.
        attn_groups: the runner's groups of layers, for each group of the KV cache.
        tables: the runner's block tables.
        offset_QM: int32, on the device; each member's distance behind the scheduler in each slot of the runner.
        graphs: the runner's graph manager.
    """

    def __init__(
        self,
        model: Any,
        attn_groups: list[list[AttentionGroup]],
        tables: BlockTables,
        offset_QM: torch.Tensor,
        graphs: MemberGraphs,
    ) -> None:
        config = graphs.vllm_config
        manifest = Manifest.from_hf(config.model_config.hf_config)
        self.attention = {
            name: MemberAttention(f"members.{name}.", attn_groups, own) for name, own in model.configs.items()
        }
        self.graphs, self.tables = graphs, tables
        self.inputs = GraphInputs(model, self.attention, tables, offset_QM, config)
        drafting = None if manifest.draft is None else manifest.place(manifest.draft)
        graphs.set_up(self.inputs, len(manifest.names), drafting)
        self._config = config
        self._caches = len(attn_groups)

    def groups(self, names: Sequence[str]) -> list[list[AttentionGroup]]:
        """The groups of layers of some members, for each group of the KV cache."""
        own = [group for name in names for group in self.attention[name].groups]
        return [[group for group in own if group.kv_cache_group_id == cache] for cache in range(self._caches)]

    def parts(
        self, step: Step, input_batch: InputBatch, slot_mappings: torch.Tensor, build: Build
    ) -> tuple[dict[str, Pass | Replay], dict[str, torch.Tensor]]:
        """How the members run that read something in a step; the inputs of graphs are written.

        Args:
            step: the step.
            input_batch: the runner's batch for the step.
            slot_mappings: the runner's slot mappings.
            build: builds the attention metadata of the whole step.

        Returns:
            The parts, and the step's rows in which members are needed but have nothing to read.
        """
        every = {name: Layout(step, member) for member, name in enumerate(self.attention)}
        layouts = {name: layout for name, layout in every.items() if layout.count}
        in_graphs = {
            name: part
            for name, layout in layouts.items()
            if (part := self._graph_part(layout, input_batch)) is not None
        }
        if in_graphs:
            self.inputs.fill(
                list(in_graphs.values()),
                GraphBatch(
                    input_batch.idx_mapping,
                    step.input_ids_T,
                    step.positions_T,
                    input_batch.query_start_loc,
                    step.seq_lens_R,
                    step.block_tables,
                ),
            )
        whole = [name for name, layout in layouts.items() if layout.is_whole and name not in in_graphs]
        shared = build(self.groups(whole)) if whole else {}
        found: dict[str, Pass | Replay] = {}
        for name, layout in layouts.items():
            if name in in_graphs:
                found[name] = self._replay(in_graphs[name], layout)
            elif layout.is_whole:
                found[name] = self._whole(name, layout, step, slot_mappings, shared)
            else:
                found[name] = self._pass(name, layout)
        return found, idle_rows(every)

    def _graph_part(self, layout: Layout, input_batch: InputBatch) -> GraphPart | None:
        counts = layout.kept_R[layout.active]
        decodes = ~input_batch.is_prefilling_np[layout.active]
        if input_batch.prefill_runs_as_decode_np is not None:
            decodes |= input_batch.prefill_runs_as_decode_np[layout.active]
        uniform = int(counts[0]) if decodes.all() and (counts == counts[0]).all() else None
        shape = self.graphs.shape_for(len(counts), layout.count, uniform)
        # Tokens of a per-member prompt come from the host; and a replay calls no hooks.
        if shape.cg_mode != CUDAGraphMode.FULL or layout.reads_its_prompt or layout.is_watched:
            return None
        longest = int(layout.lengths_A.max())
        return GraphPart(layout.member, layout.active, counts, layout.lengths_A, longest, shape)

    def _replay(self, part: GraphPart, layout: Layout) -> Replay:
        self.inputs.context(part)  # Updates the builders' buffers, which graphs read.
        return Replay(part, self.graphs.by_member[part.member, part.shape], layout.rows_T)

    def _whole(
        self,
        name: str,
        layout: Layout,
        step: Step,
        slot_mappings: torch.Tensor,
        metadata: Mapping[str, Any],
    ) -> Pass:
        shape = self._shape_of_pieces(layout)
        # After the step's slots, the runner's slots are for padding.
        all_slots = self.tables.slot_mappings[:, : shape.num_tokens]
        assert all_slots.data_ptr() == slot_mappings.data_ptr(), (
            "the runner's slots are where they always are"
        )
        layers = self.attention[name]
        own = {layer: metadata[layer] for group in layers.groups for layer in group.layer_names}
        slots = layers.by_layer([all_slots[group.kv_cache_group_id] for group in layers.groups])
        return Pass(
            layout.member,
            step.input_ids_T[: layout.count],
            step.positions_T[: layout.count],
            None,
            shape,
            {"attn_metadata": own, "slot_mapping": slots},
            self._config,
        )

    def _pass(self, name: str, layout: Layout) -> Pass:
        reading = layout.reading(self.attention[name])
        shape = self._shape_of_pieces(layout)
        beyond = shape.num_tokens - layout.count
        slots = {
            layer: torch.nn.functional.pad(slots_T, (0, beyond), value=NO_SLOT)
            for layer, slots_T in reading.slots.items()
        }
        context = {"attn_metadata": reading.attention, "slot_mapping": slots}
        return Pass(
            layout.member,
            reading.input_ids_T,
            reading.positions_T,
            reading.rows_T,
            shape,
            context,
            self._config,
        )

    def _shape_of_pieces(self, layout: Layout) -> BatchExecutionDescriptor:
        """The size of the piecewise graphs between a member's attention layers; without them, the number of tokens."""
        count = layout.count
        shape = self.graphs.shape_for(count, count, None)
        if shape.cg_mode == CUDAGraphMode.PIECEWISE and not layout.is_watched:
            return shape
        return BatchExecutionDescriptor(CUDAGraphMode.NONE, count, None)
