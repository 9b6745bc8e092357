"""Speculation with a member of the family as the draft, without a second copy of its weights or KV cache.

The composite has already run that member on the text, so its cache holds every token but the one just sampled. A draft
begins with that token; vLLM's drafts with another model read all tokens of the step again. Cache entries of a draft are
overwritten with the same values when it is verified, or lie beyond the end of the text.

Shape suffixes: R requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import CommonAttentionMetadata

from eft_server.engine.message import EngineRequest
from eft_server.engine.worker.member_prompts import NO_SLOT, MemberAttention, cache_block, shifted


class Draft(nn.Module):
    """One member of a composite, as a model for vLLM's drafters: it proposes ids that all members share."""

    def __init__(self, composite: Any, member: str) -> None:
        super().__init__()
        self._composite = [composite]  # In a list, since its parameters are not this module's.
        self._member = member

    @override
    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, **_unused: Any) -> torch.Tensor:
        """The member's hidden states."""
        hidden: torch.Tensor = self._composite[0].run_member(self._member, input_ids, positions)
        return hidden

    def compute_logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """The member's logits over the base's vocabulary, −inf where an id is not shared: (R, V)."""
        logits: torch.Tensor = self._composite[0].shared_logits(self._member, hidden_RH)
        return logits


@dataclass(frozen=True)
class DraftBatch:
    """Requests to draft for, one token each in every pass, in the member's positions.

    Attributes:
        attention: the member's layers.
        tables: block tables (R, blocks) for each group of the KV cache, with leftovers after a request's blocks.
        block_sizes: tokens in a block of each of those.
        owned: number of blocks of each request, int64 (R,) for each group. A draft may run past them, since vLLM
            allocates none ahead of a prompt's first step; blocks there belong to other requests.
        offset_R: the member's distance behind the scheduler, in tokens.
        active_R: which requests may write to the cache; a prompt in prefill still continues there.
        max_len: the longest text.
    """

    attention: MemberAttention
    tables: Sequence[torch.Tensor]
    block_sizes: Sequence[int]
    owned: Sequence[torch.Tensor]
    offset_R: torch.Tensor
    active_R: torch.Tensor
    max_len: int

    @cached_property
    def _own_tables(self) -> list[torch.Tensor]:
        return [_without_leftovers(*pair) for pair in zip(self.tables, self.owned, strict=True)]

    def positions(self, scheduled_R: torch.Tensor) -> torch.Tensor:
        """The member's positions for the scheduler's."""
        return (scheduled_R - self.offset_R).clamp(0, self.max_len - 1)

    def context(
        self, scheduled_R: torch.Tensor, longest: int
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and KV slots by layer, for one token per request.

        Args:
            scheduled_R: the scheduler's positions of those tokens.
            longest: at least the length of the longest text including them.
        """
        slots = [self._slots(group, scheduled_R) for group in self.attention.groups]
        metadata = [
            group.build_metadata(self._common(group, slot_R, scheduled_R, longest))
            for group, slot_R in zip(self.attention.groups, slots, strict=True)
        ]
        return self.attention.by_layer(metadata), self.attention.by_layer(slots)

    def _slots(self, group: Any, scheduled_R: torch.Tensor) -> torch.Tensor:
        size = self.block_sizes[group.kv_cache_group_id]
        position_R = (scheduled_R - self.offset_R % cache_block(group)).clamp(0, self.max_len - 1)
        table = self._own_tables[group.kv_cache_group_id]
        blocks_R = table.gather(1, (position_R // size).unsqueeze(-1)).squeeze(-1).long()
        within_R = position_R // size < self.owned[group.kv_cache_group_id]
        usable_R = self.active_R & within_R & (scheduled_R < self.max_len)
        return torch.where(usable_R, blocks_R * size + position_R % size, NO_SLOT)

    def _common(
        self, group: Any, slots_R: torch.Tensor, scheduled_R: torch.Tensor, longest: int
    ) -> CommonAttentionMetadata:
        count = len(scheduled_R)
        starts = torch.arange(count + 1, dtype=torch.int32)
        positions_R = self.positions(scheduled_R)
        return CommonAttentionMetadata(
            query_start_loc=async_tensor_h2d(starts, device=scheduled_R.device),
            query_start_loc_cpu=starts,
            seq_lens=(positions_R + 1).int(),
            seq_lens_cpu_upper_bound=torch.full((count,), min(longest, self.max_len), dtype=torch.int32),
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=min(longest, self.max_len),
            block_table_tensor=shifted(
                self._own_tables[group.kv_cache_group_id],
                group,
                self.offset_R,
                self.block_sizes[group.kv_cache_group_id],
            ),
            slot_mapping=slots_R,
            positions=positions_R,
            is_prefilling=torch.zeros(count, dtype=torch.bool),
        )


def _without_leftovers(table_RB: torch.Tensor, owned_R: torch.Tensor) -> torch.Tensor:
    columns_B = torch.arange(table_RB.shape[1], device=table_RB.device)
    return torch.where(columns_B < owned_R.unsqueeze(-1), table_RB, 0)


def offsets(requests_R: Sequence[EngineRequest], member: int, device: torch.device) -> torch.Tensor:
    """A member's distance behind the scheduler in each request: int64 (R,)."""
    values = np.array([request.offsets[member] for request in requests_R], dtype=np.int64)
    return async_tensor_h2d(values, device=device)
