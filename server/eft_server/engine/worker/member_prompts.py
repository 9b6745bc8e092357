"""The tokens that each member reads in a step: those of the requests that need it, with per-member prompts.

A member that no request of a step needs is skipped; one that some requests need reads only their tokens.

Members may have different prompts, but share the generated tokens. The scheduler knows one prompt, the longest of the
members', L tokens. A member whose prompt has L_m tokens is `offset` = L − L_m tokens behind: at the scheduler's
position p it reads its token q = p − offset, and where q is negative it has nothing to read. Its keys and values go to
slots of the same blocks, moved by whole blocks as far as possible: `shift` = offset rounded down to blocks, so that its
token q lies in slot q + shift. So its generated tokens never reach further back than the last `offset` mod block slots
of the prompt.

Shape suffixes: T tokens of a step, R requests, M members.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.request import Request
from vllm.v1.worker.utils import AttentionGroup

from eft_server.engine.message import Prompts

if TYPE_CHECKING:
    from eft_server.engine.worker.composite import EftForCausalLM


NO_SLOT = -1
"""The slot of a row that does not write to the KV cache."""


@dataclass(frozen=True)
class Step:
    """A runner's data for a step, in the order of its batch.

    Attributes:
        needed_RM: bool; whether a request needs a member.
        offset_RM: int64; a member's distance behind the scheduler in a request, in tokens.
        reading_R: bool; whether the members are still in the prefill of per-member prompts.
        prompts_R: those prompts, by request.
        computed_R: tokens that the scheduler counts as computed before the step.
        scheduled_R: tokens of the step.
        input_ids_T: the scheduler's tokens.
        positions_T: the scheduler's positions.
        seq_lens_R: computed and scheduled tokens, on the device.
        block_tables: one tensor (R, blocks) for each group of the KV cache.
        block_sizes: tokens in a block of each of those.
        watched: the places of members whose activations are wanted: they run in Python, without graphs.
    """

    needed_RM: np.ndarray
    offset_RM: np.ndarray
    reading_R: np.ndarray
    prompts_R: Mapping[int, Prompts]
    computed_R: np.ndarray
    scheduled_R: np.ndarray
    input_ids_T: torch.Tensor
    positions_T: torch.Tensor
    seq_lens_R: torch.Tensor
    block_tables: Sequence[torch.Tensor]
    block_sizes: Sequence[int]
    watched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Reading:
    """One member's tokens in a step, and the rows of the step to which they belong.

    Attributes:
        input_ids_T: its tokens.
        positions_T: its positions.
        rows_T: for each of its rows, the step's row.
        attention: metadata by layer.
        slots: KV slots by layer.
    """

    input_ids_T: torch.Tensor
    positions_T: torch.Tensor
    rows_T: torch.Tensor
    attention: Mapping[str, Any]
    slots: Mapping[str, torch.Tensor]

    def run(self, model: "EftForCausalLM", name: str, states_TH: torch.Tensor) -> None:
        """Run a member, and write its hidden states to its rows of the step; the others do not change."""
        step: Any = get_forward_context()
        own = replace(
            step,
            attn_metadata={**step.attn_metadata, **self.attention},
            slot_mapping={**step.slot_mapping, **self.slots},
            is_padding=None,
        )
        with override_forward_context(own):
            states_TH[self.rows_T] = model.run_member(name, self.input_ids_T, self.positions_T)


class MemberPromptHasher:
    """Hashes the blocks of one request, in vLLM's chain of hashes, by the tokens of all members in them.

    A block may be shared if all its tokens come from the prompts; otherwise it belongs only to the request, because
    generated tokens of another sample would go to the same slots.

    Args:
        prompts: the per-member prompts.
        block_size: tokens in a block.
        hash_function: vLLM's choice for its prefix cache.
        private_from: blocks that reach beyond this many tokens are not shared; None means no limit.
    """

    def __init__(
        self,
        prompts: Prompts,
        block_size: int,
        hash_function: Callable[[Any], bytes],
        private_from: int | None = None,
    ) -> None:
        self._prompts = prompts
        self._private_from = private_from
        self._size = block_size
        self._hash_function = hash_function

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hash the blocks that have become full since the last call, as vLLM's hashers do."""
        hashes: list[BlockHash] = []
        first = len(request.block_hashes)
        for block in range(first, request.num_tokens // self._size):
            start, stop = block * self._size, (block + 1) * self._size
            known, _ = generate_block_hash_extra_keys(request, start, stop, 0)
            keys = (*(known or ()), *self._keys(request.request_id, start, stop)) or None
            parent = hashes[-1] if hashes else request.block_hashes[-1] if request.block_hashes else None
            tokens = request.all_token_ids[start:stop]
            hashes.append(hash_block_tokens(self._hash_function, parent, tokens, keys))
        return hashes

    def _keys(self, request_id: str, start: int, stop: int) -> Iterator[Any]:
        if self._private_from is not None and stop > self._private_from:
            yield request_id
        for member, tokens in enumerate(self._prompts.tokens_M):
            offset = self._prompts.offset(member)
            shift = offset // self._size * self._size
            yield offset
            yield tokens[max(start - shift, 0) : max(stop - shift, 0)].tobytes()
            if stop - shift > len(tokens):
                yield request_id


class MemberAttention:
    """One member's attention layers, with separate metadata builders.

    Args:
        prefix: the beginning of its layers' names.
        groups: the runner's groups, for each group of the KV cache.
        config: the member's config, by whose heads a builder sizes its buffers.
    """

    def __init__(self, prefix: str, groups: Sequence[Sequence[AttentionGroup]], config: VllmConfig) -> None:
        self.groups: list[AttentionGroup] = []
        for group in (group for per_cache in groups for group in per_cache):
            layers = [name for name in group.layer_names if name.startswith(prefix)]
            if layers:
                self.groups.append(_own(group, layers, config))

    def by_layer(self, values: Sequence[Any]) -> dict[str, Any]:
        """One value per group, repeated for each of its layers."""
        pairs = zip(self.groups, values, strict=True)
        return {layer: value for group, value in pairs for layer in group.layer_names}


def _own(group: AttentionGroup, layers: list[str], config: VllmConfig) -> AttentionGroup:
    """A group of some of the layers, built as vLLM builds the whole, with the workspace that all builders share.

    vLLM gives its builders the base's settings, and some use those instead of the layers to size the buffers of their
    kernels: Triton's scratch, the workspaces of ROCm and of multi-head latent attention.

    Raises:
        ValueError: a builder would still not have room for the heads of its layers.
    """
    shared: Any = group.get_metadata_builder(0)
    own = replace(group, layer_names=layers, metadata_builders=[], kernel_block_table=None)
    own.create_metadata_builders(config, shared.device, block_size(group))
    for builder in own.metadata_builders:
        if hasattr(builder, "set_workspace_buffer") and hasattr(shared, "_get_workspace_buffer"):
            builder.set_workspace_buffer(shared._get_workspace_buffer())
    wide = getattr(group.kv_cache_spec, "head_size", 0)
    room = getattr(own.metadata_builders[0], "headdim", wide)
    if room < wide:
        raise ValueError(
            f"{layers[0]!r} has heads of size {wide}, but the attention backend {group.backend.get_name()} "
            f"has room only for {room}: set vllm.attention_backend to another"
        )
    return own


def block_size(group: AttentionGroup) -> int:
    """The block size of a group's kernels."""
    return int(group.get_metadata_builder(0).kv_cache_spec.block_size)


def cache_block(group: AttentionGroup) -> int:
    """The size of the scheduler's blocks, which kernels may divide."""
    return int(group.kv_cache_spec.block_size)


def shifted(
    table_RB: torch.Tensor, group: AttentionGroup, offset_R: torch.Tensor, table_block: int
) -> torch.Tensor:
    """Block tables without the whole blocks before a member's first token: (R, B).

    Args:
        table_RB: in blocks of `table_block` tokens.
        group: the group of layers that read it.
        offset_R: int64; the member's distance behind the scheduler, in tokens.
        table_block: tokens in a block of the table.
    """
    block = cache_block(group)
    shift_R = offset_R // block * (block // table_block)
    columns_RB = torch.arange(table_RB.shape[1], device=table_RB.device) + shift_R.unsqueeze(-1)
    return table_RB.gather(1, columns_RB.clamp_(max=table_RB.shape[1] - 1)).contiguous()


def read(
    step: Step, attention: Mapping[str, MemberAttention]
) -> tuple[dict[str, Reading | None], dict[str, torch.Tensor]]:
    """Determine the tokens that the members read in a step.

    Args:
        step: the step.
        attention: all members' layers, in the order of the coefficients.

    Returns:
        By name, the members that read something, None for one that reads the scheduler's tokens; and the idle rows.
    """
    layouts = {name: Layout(step, member) for member, name in enumerate(attention)}
    parts = {
        name: None if layout.is_whole else layout.reading(attention[name])
        for name, layout in layouts.items()
        if layout.count
    }
    return parts, idle_rows(layouts)


def idle_rows(layouts: Mapping[str, "Layout"]) -> dict[str, torch.Tensor]:
    """By name, the step's rows in which a member is needed but has nothing to read.

    Nothing is sampled from them, but vLLM selects a row of each request in prefill, and a row that is not finite ends
    its request: values from an earlier step must not remain there.
    """
    return {name: rows_T for name, layout in layouts.items() if (rows_T := layout.idle_T) is not None}


class Layout:
    """One member's rows of a step: their tokens and places.

    Attributes:
        member: its place.
        count: number of rows.
        kept_R: number of rows of each request, always its last ones.
        is_whole: whether they are all rows of the step, with the scheduler's tokens.
        is_watched: whether activations of them are wanted.
    """

    def __init__(self, step: Step, member: int) -> None:
        self._step = step
        self.member, self.is_watched = member, member in step.watched
        self._device = step.input_ids_T.device
        self._offset_R = step.offset_RM[:, member]
        waiting_R = np.clip(self._offset_R - step.computed_R, 0, step.scheduled_R)
        self._waiting_R = np.where(step.needed_RM[:, member], waiting_R, 0)
        self._idle_R = np.where(step.needed_RM[:, member], waiting_R, step.scheduled_R)
        self.kept_R = step.scheduled_R - self._idle_R
        self.count = int(self.kept_R.sum())
        alike = not step.reading_R.any() and not self._offset_R.any()
        self.is_whole = alike and bool(step.needed_RM[:, member].all())

    @cached_property
    def active(self) -> np.ndarray:
        """The requests that have rows for this member."""
        return np.flatnonzero(self.kept_R)

    @cached_property
    def lengths_A(self) -> np.ndarray:
        """Upper bounds on the lengths of their texts after the step, in the member's tokens."""
        lengths_R = self._step.computed_R + self._step.scheduled_R - self._offset_R
        return lengths_R[self.active].astype(np.int32)

    @property
    def reads_its_prompt(self) -> bool:
        """Whether any of its rows may hold a token of a per-member prompt."""
        return bool(self._step.reading_R[self.active].any())

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """For each of its rows, the request and the row of the step."""
        request = np.repeat(np.arange(len(self.kept_R)), self.kept_R)
        # A request is idle in its first rows.
        return request, _ranges(_starts(self._step.scheduled_R) + self._idle_R, self.kept_R)

    @cached_property
    def rows_T(self) -> torch.Tensor | None:
        """For each of its rows, the row of the step; None if they are the same."""
        if self.count == self._step.scheduled_R.sum():
            return None
        return self._send(self._rows[1])

    @property
    def idle_T(self) -> torch.Tensor | None:
        """The step's rows in which the member is needed but has nothing to read; None if there are none."""
        if not self._waiting_R.any():
            return None
        return self._send(_ranges(_starts(self._step.scheduled_R), self._waiting_R))

    def reading(self, attention: MemberAttention) -> Reading:
        """The member's tokens, if they are not simply the step's."""
        request, rows = self._rows
        rows_T = self._send(rows)
        positions_T = self._step.positions_T[rows_T] - self._send(self._offset_R[request])
        ids_T = self._step.input_ids_T[rows_T]
        if self.reads_its_prompt:
            own_T = self._send(self._own_tokens(request))
            ids_T = torch.where(own_T >= 0, own_T.to(ids_T.dtype), ids_T)
        slots = [self._slots(group, request, rows_T) for group in attention.groups]
        metadata = [
            self._metadata(group, slots_T, positions_T)
            for group, slots_T in zip(attention.groups, slots, strict=True)
        ]
        return Reading(ids_T, positions_T, rows_T, attention.by_layer(metadata), attention.by_layer(slots))

    def _send(self, values: np.ndarray) -> torch.Tensor:
        return async_tensor_h2d(values, device=self._device)

    def _own_tokens(self, request: np.ndarray) -> np.ndarray:
        """The member's prompt token in each row that has one, −1 where the scheduler's token applies."""
        own = np.full(self.count, -1, dtype=np.int64)
        first_R = self._step.computed_R + self._idle_R - self._offset_R
        for index in np.flatnonzero(self._step.reading_R & (self.kept_R > 0)):
            rows = np.flatnonzero(request == index)
            tokens = self._step.prompts_R[index].tokens_M[self.member][first_R[index] :][: len(rows)]
            own[rows[: len(tokens)]] = tokens
        return own

    def _slots(self, group: AttentionGroup, request: np.ndarray, rows_T: torch.Tensor) -> torch.Tensor:
        """Slots of the tokens: the scheduler's position, minus the remainder of the offset after whole blocks."""
        size = self._step.block_sizes[group.kv_cache_group_id]
        rest_T = self._send((self._offset_R % cache_block(group))[request])
        position_T = self._step.positions_T[rows_T] - rest_T
        table = self._step.block_tables[group.kv_cache_group_id]
        blocks_T = table[self._send(request), position_T // size].long()
        return blocks_T * size + position_T % size

    def _metadata(self, group: AttentionGroup, slots_T: torch.Tensor, positions_T: torch.Tensor) -> Any:
        active_A = self._send(self.active)
        offset_A = self._send(self._offset_R[self.active])
        starts = np.concatenate([[0], self.kept_R[self.active].cumsum()]).astype(np.int32)
        lengths_A = self._step.seq_lens_R[active_A] - offset_A
        starts_cpu = torch.from_numpy(starts)
        table_AB = self._step.block_tables[group.kv_cache_group_id][active_A]
        common = CommonAttentionMetadata(
            query_start_loc=self._send(starts),
            query_start_loc_cpu=starts_cpu,
            seq_lens=lengths_A.to(self._step.seq_lens_R.dtype),
            seq_lens_cpu_upper_bound=torch.from_numpy(self.lengths_A),
            num_reqs=len(self.active),
            num_actual_tokens=self.count,
            max_query_len=int(self.kept_R.max()),
            max_seq_len=int(self.lengths_A.max()),
            block_table_tensor=shifted(
                table_AB, group, offset_A, self._step.block_sizes[group.kv_cache_group_id]
            ),
            slot_mapping=slots_T,
            positions=positions_T,
            is_prefilling=torch.from_numpy(self.kept_R[self.active] > 1),
        )
        return group.build_metadata(common)


def _starts(counts_R: np.ndarray) -> np.ndarray:
    """The starts of consecutive ranges."""
    starts_R: np.ndarray = counts_R.cumsum() - counts_R
    return starts_R


def _ranges(first_R: np.ndarray, counts_R: np.ndarray) -> np.ndarray:
    """The numbers of several ranges, one range after the other."""
    return np.arange(counts_R.sum()) + np.repeat(first_R - _starts(counts_R), counts_R)
