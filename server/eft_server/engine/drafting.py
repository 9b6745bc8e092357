"""Speculation with a member of the family as the draft: no second copy of its weights, nor of its KV cache.

The composite has already read everything with that member, so its cache holds every token but the one just sampled.
A draft begins with that token; vLLM's own drafts of another model read all tokens of the step once more. What a draft
writes to the cache is overwritten with the same values when it is verified, or lies behind the end of the text.

Shape suffixes: R requests.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from vllm.v1.attention.backend import CommonAttentionMetadata

from eft_server.engine.prompts import NO_SLOT, MemberAttention, Prompts, block_size, cache_block, shifted


class Draft(nn.Module):
    """One member of a composite, as vLLM's drafters want a model: it proposes ids that all members share."""

    def __init__(self, composite: Any, member: str) -> None:
        super().__init__()
        self._composite = [composite]  # In a list, for its parameters are not this module's.
        self._member = member

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, **_unused: Any) -> torch.Tensor:
        """The member's hidden states."""
        hidden: torch.Tensor = self._composite[0].run_member(self._member, input_ids, positions)
        return hidden

    def compute_logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """The member's logits over the base's vocabulary, −inf where an id is not shared: (R, V)."""
        logits: torch.Tensor = self._composite[0].shared_logits(self._member, hidden_RH)
        return logits


class DraftBatch:
    """Requests that are drafted for, one token each in every pass, in the member's own positions.

    Args:
        attention: the member's layers.
        tables: block tables (R, blocks) for each group of the KV cache.
        offset_R: how far the member is behind the scheduler, in tokens.
        active_R: which requests may write to the cache; a prompt that is still being read goes on there.
        max_len: the longest text.
    """

    def __init__(
        self,
        attention: MemberAttention,
        tables: Sequence[torch.Tensor],
        offset_R: torch.Tensor,
        active_R: torch.Tensor,
        max_len: int,
    ) -> None:
        self._attention = attention
        self._tables = tables
        self._offset_R = offset_R
        self._active_R = active_R
        self._max_len = max_len

    def positions(self, scheduled_R: torch.Tensor) -> torch.Tensor:
        """The member's positions at the scheduler's."""
        return (scheduled_R - self._offset_R).clamp(0, self._max_len - 1)

    def context(
        self, scheduled_R: torch.Tensor, longest: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and KV slots by layer, for one token a request.

        Args:
            scheduled_R: the scheduler's positions of those tokens.
            longest: at least as long as the longest text with them.
        """
        slots = [self._slots(group, scheduled_R) for group in self._attention.groups]
        metadata = [
            group.build_metadata(self._common(group, slot_R, scheduled_R, longest))
            for group, slot_R in zip(self._attention.groups, slots, strict=True)
        ]
        return self._attention.by_layer(metadata), self._attention.by_layer(slots)

    def _slots(self, group: Any, scheduled_R: torch.Tensor) -> torch.Tensor:
        size = block_size(group)
        position_R = (scheduled_R - self._offset_R % cache_block(group)).clamp(0, self._max_len - 1)
        table = self._tables[group.kv_cache_group_id]
        blocks_R = table.gather(1, (position_R // size).unsqueeze(-1)).squeeze(-1).long()
        usable_R = self._active_R & (scheduled_R < self._max_len)
        return torch.where(usable_R, blocks_R * size + position_R % size, NO_SLOT)

    def _common(
        self, group: Any, slots_R: torch.Tensor, scheduled_R: torch.Tensor, longest: int
    ) -> CommonAttentionMetadata:
        count = len(scheduled_R)
        starts = torch.arange(count + 1, dtype=torch.int32)
        positions_R = self.positions(scheduled_R)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(scheduled_R.device, non_blocking=True),
            query_start_loc_cpu=starts,
            seq_lens=(positions_R + 1).int(),
            seq_lens_cpu_upper_bound=torch.full((count,), min(longest, self._max_len), dtype=torch.int32),
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=min(longest, self._max_len),
            block_table_tensor=shifted(self._tables[group.kv_cache_group_id], group, self._offset_R),
            slot_mapping=slots_R,
            positions=positions_R,
            is_prefilling=torch.zeros(count, dtype=torch.bool),
        )


def offsets(prompts_R: Sequence[Prompts | None], member: int, device: torch.device) -> torch.Tensor:
    """How far a member is behind the scheduler in each request: int64 (R,)."""
    values = [prompts.offset(member) if prompts else 0 for prompts in prompts_R]
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
