"""Drafts by a member on vLLM's Model Runner V1.

Shape suffixes: R requests, K drafted tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from typing_extensions import override
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from eft_server.engine.worker.drafting import Draft, DraftBatch, offsets


class MemberProposer(DraftModelProposer):
    """VLLM's proposer, with a loaded member in place of a separate model.

    Attributes:
        runner: the model runner for which it drafts (`CoefficientRunner`).
        member: the member's name.
    """

    runner: Any
    member: str

    @override
    def load_model(self, target_model: nn.Module) -> None:
        """Do nothing: the member is already loaded."""
        self.model = Draft(target_model, self.member)
        layers = self.vllm_config.compilation_config.static_forward_context
        self._draft_attn_layer_names = {n for n in layers if n.startswith(f"members.{self.member}.")}

    @override
    def propose(  # type: ignore[override]
        self,
        num_speculative_tokens: int,
        target_token_ids: torch.Tensor,
        target_positions: torch.Tensor,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        token_indices_to_sample: torch.Tensor | None,
        common_attn_metadata: CommonAttentionMetadata,
        sampling_metadata: SamplingMetadata,
        **_unused: Any,
    ) -> torch.Tensor:
        """Draft from each request's next token: int64 (R, K). The member has read everything before it."""
        self._last_draft_probs = None
        count = len(next_token_ids)
        last_R = token_indices_to_sample
        if last_R is None:
            last_R = common_attn_metadata.query_start_loc[1 : count + 1] - 1
        positions_R = target_positions[last_R] + 1
        batch = self._batch(count)
        ids_R, drafted, probabilities = next_token_ids, [], []
        for step in range(num_speculative_tokens):
            longest = common_attn_metadata.max_seq_len + 1 + step
            hidden_RH = self._run(batch, ids_R, positions_R + step, longest)
            ids_R, probability_RV = self._sample_draft_tokens(hidden_RH, sampling_metadata)
            drafted.append(ids_R)
            if probability_RV is not None:
                probabilities.append(probability_RV)
        if not drafted:
            return next_token_ids.new_empty((count, 0), dtype=torch.int64)
        if probabilities:
            self._last_draft_probs = torch.stack(probabilities, dim=1).contiguous()
        return torch.stack(drafted, dim=1)

    def _batch(self, count: int) -> DraftBatch:
        runner = self.runner
        names = list(runner.member_attention)
        tables = runner.input_batch.block_table.block_tables
        owned = [torch.from_numpy(table.num_blocks_per_row[:count].astype("int64")) for table in tables]
        return DraftBatch(
            runner.member_attention[self.member],
            [table.get_device_tensor(count) for table in tables],
            [table.block_size for table in tables],
            [blocks_R.to(self.device, non_blocking=True) for blocks_R in owned],
            offsets(runner.batch[:count], names.index(self.member), self.device),
            ~runner.discard_request_mask.gpu[:count],
            self.max_model_len,
        )

    def _run(
        self, batch: DraftBatch, ids_R: torch.Tensor, positions_R: torch.Tensor, longest: int
    ) -> torch.Tensor:
        metadata, slots = batch.context(positions_R, longest)
        with set_forward_context(
            metadata,
            self.vllm_config,
            num_tokens=len(ids_R),
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=slots,
        ):
            hidden_RH: torch.Tensor = self.model(ids_R.int(), batch.positions(positions_R))
        return hidden_RH
