"""The prefix cache knows which members have read a block.

A member that a request does not need is not run for it, so the request's blocks hold nothing of that member's. Another
request may use them if it needs no more members than have read them.
"""

from typing import Any, cast

from typing_extensions import override
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock, make_block_hash_with_group_id
from vllm.v1.request import Request

from eft_server.engine.message import EngineRequest, Manifest
from eft_server.engine.patches import retype

_Members = frozenset[int]
"""Their places."""


class MemberBlockPool(BlockPool):
    """vLLM's pool of blocks, handing out those that the members in question have read.

    Attributes:
        readers: by the block's id, who has read what is in it; of blocks that are not cached, nothing of use.
        needed: the members of the request for which blocks are looked up.
    """

    readers: dict[int, _Members]
    needed: _Members

    @override
    def get_cached_block(
        self, block_hash: BlockHash, kv_cache_group_ids: list[int]
    ) -> list[KVCacheBlock] | None:
        """As vLLM's; of blocks that hold the same tokens, one that all needed members have read."""
        found = []
        for group_id in kv_cache_group_ids:
            key = make_block_hash_with_group_id(block_hash, group_id)
            cached: Any = self.cached_block_hash_to_block._cache.get(key)
            blocks = cached.values() if isinstance(cached, dict) else [] if cached is None else [cached]
            block = next((one for one in blocks if self.needed <= self._readers(one)), None)
            if block is None:
                return None
            found.append(block)
        return found

    def _readers(self, block: KVCacheBlock) -> _Members:
        return self.readers.get(block.block_id, frozenset())

    @override
    def cache_full_blocks(
        self,
        request: Request,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        *args: Any,
        **options: Any,
    ) -> None:
        """As vLLM's, noting who reads them."""
        super().cache_full_blocks(request, blocks, num_cached_blocks, num_full_blocks, *args, **options)
        members = noted_of(request).members
        self.readers.update((block.block_id, members) for block in blocks[num_cached_blocks:num_full_blocks])


class MemberCacheManager(KVCacheManager):
    """vLLM's manager, telling the pool for whom it looks blocks up."""

    @override
    def get_computed_blocks(
        self, request: Request, *args: Any, **options: Any
    ) -> tuple[KVCacheBlocks, int, int]:
        """As vLLM's."""
        pool: Any = self.block_pool
        pool.needed = noted_of(request).members
        return super().get_computed_blocks(request, *args, **options)


def know_members(manager: KVCacheManager) -> None:
    """Re-type vLLM's manager and its pool."""
    pool = retype(manager.block_pool, MemberBlockPool)
    pool.readers, pool.needed = {}, frozenset()
    retype(manager, MemberCacheManager)


def note(request: Request, manifest: Manifest) -> EngineRequest:
    """Read what a request brings, and keep it with the request."""
    params, noted = request.sampling_params, cast(Any, request)
    noted.eft = EngineRequest.read(params.extra_args if params else None, manifest)
    return noted_of(request)


def noted_of(request: Any) -> EngineRequest:
    """What `note` has kept."""
    noted: EngineRequest = request.eft
    return noted
