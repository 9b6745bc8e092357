"""A prefix cache that knows which members have computed a block.

A member that a request does not need is not run for it, so the request's blocks hold nothing of that member. Another
request may use them if all the members that it needs have computed them.
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
"""Members, by place."""


class MemberBlockPool(BlockPool):
    """vLLM's block pool, which returns only cached blocks that the needed members have computed.

    Attributes:
        readers: by block id, the members that have computed it; meaningless for blocks that are not cached.
        needed: the members of the request whose blocks are looked up.
    """

    readers: dict[int, _Members]
    needed: _Members

    @override
    def get_cached_block(
        self, block_hash: BlockHash, kv_cache_group_ids: list[int]
    ) -> list[KVCacheBlock] | None:
        """As in vLLM; among blocks that hold the same tokens, one that all needed members have computed."""
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
        """As in vLLM; also record which members compute the blocks."""
        super().cache_full_blocks(request, blocks, num_cached_blocks, num_full_blocks, *args, **options)
        members = engine_request_of(request).members
        self.readers.update((block.block_id, members) for block in blocks[num_cached_blocks:num_full_blocks])


class MemberCacheManager(KVCacheManager):
    """vLLM's manager, which passes the members of a request to the pool for look-ups."""

    @override
    def get_computed_blocks(
        self, request: Request, *args: Any, **options: Any
    ) -> tuple[KVCacheBlocks, int, int]:
        """As in vLLM, for the members of the request."""
        pool: Any = self.block_pool
        pool.needed = engine_request_of(request).members
        return super().get_computed_blocks(request, *args, **options)


def use_member_blocks(manager: KVCacheManager) -> None:
    """Re-type vLLM's manager and its pool."""
    pool = retype(manager.block_pool, MemberBlockPool)
    pool.readers, pool.needed = {}, frozenset()
    retype(manager, MemberCacheManager)


def note(request: Request, manifest: Manifest) -> EngineRequest:
    """Read a request's data, and store it with the request."""
    params, noted = request.sampling_params, cast(Any, request)
    noted.eft = EngineRequest.read(params.extra_args if params else None, manifest)
    return engine_request_of(request)


def engine_request_of(request: Any) -> EngineRequest:
    """The data that `note` has stored."""
    noted: EngineRequest = request.eft
    return noted
