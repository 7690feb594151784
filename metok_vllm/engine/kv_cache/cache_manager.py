"""vLLM's KV cache manager, which does not ask every group about a token that has its slot already.

A decode step needs a new block once in a block size; asking each of several groups every time would
make the scheduler slower than plain vLLM's.
Source of what is overridden: vllm/v1/core/kv_cache_manager.py, version 0.32.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request

from metok_vllm.engine.kv_cache.evictor import StageManager
from metok_vllm.engine.kv_cache.evictor_state import EvictorState


class StagedCacheManager(KVCacheManager):  # type: ignore[misc]
    """All stages of all requests, over one pool."""

    books: EvictorState
    stages: tuple[StageManager, ...]

    @classmethod
    def adopt(cls, manager: Any) -> StagedCacheManager:
        """Make vLLM's manager, built by its scheduler, one of ours."""
        manager.__class__ = cls
        manager.books = EvictorState()
        manager.stages = manager.coordinator.single_type_managers
        for stage in manager.stages:
            assert isinstance(stage, StageManager), "a layer without a stage"
            stage.books = manager.books
        adopted: StagedCacheManager = manager
        return adopted

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: Any = None,
        num_lookahead_tokens: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        tokens = request.num_computed_tokens + num_new_tokens
        if tokens + num_lookahead_tokens <= self.books.room.get(request.request_id, 0):
            return self.empty_kv_cache_blocks
        blocks = super().allocate_slots(
            request,
            num_new_tokens,
            num_new_computed_tokens,
            new_computed_blocks,
            num_lookahead_tokens,
            *args,
            **kwargs,
        )
        if blocks is not None and tokens >= request.num_prompt_tokens:
            self.books.room[request.request_id] = self._room(request.request_id, tokens)
        return blocks

    def _room(self, request_id: str, tokens: int) -> int:
        """Tokens of a request that need nothing of this manager: no block, no entry in a cache."""
        plan = self.books.plans.get(request_id)
        if plan is None:
            size = int(self.stages[0].block_size)
            room = len(self.stages[0].req_to_blocks[request_id]) * size
            # A block that gets full is entered in the prefix cache.
            return min(room, (tokens // size + 1) * size - 1) if self.enable_caching else room
        if request_id in self.books.reach:
            return 0  # what is handed out before the prefill is processed is counted
        return min(
            len(stage.req_to_blocks[request_id]) * int(stage.block_size)
            + plan.decode_dropped[stage.stage]
            for stage in self.stages
        )

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        if request.request_id not in self.books.plans:
            super().cache_blocks(request, num_computed_tokens)

    def trim(self, request_id: str) -> tuple[int, ...]:
        """Give back what decoding does not need; the blocks that are left, by group."""
        self.books.room.pop(request_id, None)
        return tuple(stage.trim(request_id) for stage in self.stages)
