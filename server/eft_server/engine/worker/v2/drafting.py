"""Drafts by a member on vLLM's Model Runner V2.

Shape suffixes: R requests.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator

from eft_server.engine.worker.drafting import Draft, DraftBatch
from eft_server.engine.worker.v2.graphs import GraphBatch, GraphPart
from eft_server.engine.worker.v2.members import Members


class MemberSpeculator(StandaloneARSpeculator):
    """VLLM's speculator, with a loaded member in place of a separate model.

    Attributes:
        member: the member's name.
    """

    member: str

    @override
    def load_model(self, target_model: nn.Module) -> None:
        """Do nothing: the layers and their cache are the target's."""
        self.model = Draft(target_model, self.member)
        self.draft_attn_layer_names = set()
        target: Any = target_model
        self._place = target.names.index(self.member)

    @override
    def _prefill(
        self,
        input_batch: InputBatch,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        num_reqs: int,
        skip_attn: bool,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        """Draft the first token. The member has read everything except the token just sampled."""
        if skip_attn:
            super()._prefill(
                input_batch, num_rejected, last_sampled, num_reqs, skip_attn, num_tokens_across_dp
            )
            return
        last_R = self._accepted_last_indices(input_batch, num_rejected, num_reqs)
        self.last_token_indices[:num_reqs] = self.arange_gpu[:num_reqs]
        self.expanded_positions[:num_reqs] = input_batch.positions[last_R] + 1
        self._batch = self._draft_batch(input_batch, num_reqs)
        ids_R = last_sampled[input_batch.idx_mapping[:num_reqs]].view(num_reqs)
        self._draft(input_batch, ids_R, 0, num_tokens_across_dp)

    @override
    def _multi_step_decode(
        self,
        input_batch: InputBatch,
        num_rejected: torch.Tensor,
        num_reqs: int,
        skip_attn: bool,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        if skip_attn:
            super()._multi_step_decode(input_batch, num_rejected, num_reqs, skip_attn, num_tokens_across_dp)
            return
        for step in range(1, self.num_speculative_steps):
            self._draft(input_batch, self.draft_tokens[:num_reqs, step - 1], step, num_tokens_across_dp)

    def _draft(
        self,
        input_batch: InputBatch,
        ids_R: torch.Tensor,
        step: int,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        count = len(ids_R)
        scheduled_R = self.expanded_positions[:count] + step
        longest = int(input_batch.seq_lens_cpu_upper_bound[:count].max()) + 1 + step
        hidden_RH = self._batch.replay(ids_R, scheduled_R, longest)
        if hidden_RH is None:
            metadata, slots = self._batch.context(scheduled_R, longest)
            positions_R = self._batch.positions(scheduled_R)
            hidden_RH = self._run_model(ids_R.int(), positions_R, metadata, slots, num_tokens_across_dp)
        self.current_draft_step.fill_(step)
        self.draft_tokens[:count, step] = self.sample_draft(
            hidden_RH,
            scheduled_R,
            self.idx_mapping[:count],
            self.temperature,
            self.seeds,
            self.current_draft_step,
            self.draft_logits,
        )

    def _draft_batch(self, input_batch: InputBatch, count: int) -> "_Batch":
        state: Any = self.model_state
        read = input_batch.num_computed_tokens_np[:count] + input_batch.num_scheduled_tokens[:count]
        done = read >= input_batch.prefill_len_np[:count]
        owned = self.block_tables.num_blocks.np[:, input_batch.idx_mapping_np[:count]].astype("int64")
        return _Batch(
            state.members.attention[self.member],
            [table[:count] for table in self.block_tables.input_block_tables],
            self.block_tables.block_sizes,
            [async_tensor_h2d(blocks_R, device=self.device) for blocks_R in owned],
            state.offsets(input_batch, self._place),
            async_tensor_h2d(done, device=self.device),
            self.max_model_len,
            state.members,
            input_batch.idx_mapping[:count],
            self._place,
        )


@dataclass(frozen=True)
class _Batch(DraftBatch):
    """A batch that may run as a graph.

    Attributes:
        members: the members' layers and graphs.
        slot_R: int64; the runner's slot of each request.
        place: the place of the member that drafts.
    """

    members: Members
    slot_R: torch.Tensor
    place: int

    def replay(self, ids_R: torch.Tensor, scheduled_R: torch.Tensor, longest: int) -> torch.Tensor | None:
        """The hidden states (R, H) of one token for each request; None if no graph fits.

        Args:
            ids_R: the tokens.
            scheduled_R: their positions, the scheduler's.
            longest: at least the length of the longest text including them.
        """
        count = len(ids_R)
        shape = self.members.graphs.draft_shape_for(count)
        if shape is None:
            return None
        longest = min(longest, self.max_len)
        lengths = np.full(count, longest, dtype=np.int32)
        part = GraphPart(
            self.place, np.arange(count), np.ones(count, dtype=np.int64), lengths, longest, shape
        )
        position_R = scheduled_R.clamp(max=self.max_len - 1)
        usable_R = self.active_R & (scheduled_R < self.max_len)
        batch = GraphBatch(
            self.slot_R,
            ids_R.contiguous(),  # It is a column of all drafted tokens.
            position_R,
            torch.arange(count + 1, dtype=torch.int32, device=ids_R.device),
            (position_R + 1).int(),
            self.tables,
            [torch.where(usable_R, owned_R, 0).int() for owned_R in self.owned],
        )
        self.members.inputs.fill([part], batch)
        self.members.inputs.context(part)
        self.members.graphs.by_member[self.place, shape].replay()
        states_RH: torch.Tensor = self.members.inputs.states(part)
        return states_RH
