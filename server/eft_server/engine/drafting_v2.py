"""Drafts of a member on vLLM's Model Runner V2.

Shape suffixes: R requests.
"""

from typing import Any

import torch
from torch import nn
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator

from eft_server.engine.drafting import Draft, DraftBatch, offsets
from eft_server.engine.prompts import MemberAttention


class MemberSpeculator(StandaloneARSpeculator):
    """VLLM's speculator, with a loaded member in place of a model of its own.

    Attributes:
        member: the member's name.
    """

    member: str

    def load_model(self, target_model: nn.Module) -> None:
        """Load nothing: the layers, and what they cache, are the target's."""
        self.model = Draft(target_model, self.member)
        self.draft_attn_layer_names = set()
        target: Any = target_model
        self._place = target.names.index(self.member)

    def set_attn(self, *args: Any, **options: Any) -> None:
        """As vLLM's, with builders of the member's own."""
        super().set_attn(*args, **options)
        self._attention = MemberAttention(
            f"members.{self.member}.", self.target_attn_groups, self.vllm_config
        )

    def _prefill(
        self,
        input_batch: InputBatch,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        num_reqs: int,
        skip_attn: bool,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        """Draft the first token. The member has read everything but the token just sampled."""
        if skip_attn:
            super()._prefill(
                input_batch, num_rejected, last_sampled, num_reqs, skip_attn, num_tokens_across_dp
            )
            return
        last_R = self._accepted_last_indices(input_batch, num_rejected, num_reqs)
        self.last_token_indices[:num_reqs] = self.arange_gpu[:num_reqs]
        self.expanded_positions[:num_reqs] = input_batch.positions[last_R] + 1
        self._batch = self._draft_batch(input_batch, num_reqs)
        self._draft(input_batch, last_sampled[input_batch.idx_mapping[:num_reqs]], 0, num_tokens_across_dp)

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

    def _draft_batch(self, input_batch: InputBatch, count: int) -> DraftBatch:
        state: Any = self.model_state
        read = input_batch.num_computed_tokens_np[:count] + input_batch.num_scheduled_tokens[:count]
        done = torch.from_numpy(read >= input_batch.prefill_len_np[:count])
        return DraftBatch(
            self._attention,
            [table[:count] for table in self.block_tables.input_block_tables],
            offsets(state.prompts_of(input_batch.req_ids), self._place, self.device),
            done.to(self.device, non_blocking=True),
            self.max_model_len,
        )
