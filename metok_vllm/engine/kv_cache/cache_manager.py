"""vLLM's KV cache manager with a fast path for tokens whose slot exists.

A decode step needs a new block once per block size. Checking each of several cache groups in every
step would make the scheduler slower than plain vLLM's.
Source of what is overridden: vllm/v1/core/kv_cache_manager.py, version 0.32.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request

from metok_vllm.engine.kv_cache.evictor import EvictorState, StageManager


class StagedCacheManager(KVCacheManager):
    """All stages of all requests, over one pool."""

    evictor_state: EvictorState
    stages: tuple[StageManager, ...]

    @classmethod
    def adopt(cls, manager: Any) -> StagedCacheManager:
        """Make the manager that vLLM's scheduler built a StagedCacheManager, in place."""
        manager.__class__ = cls
        manager.evictor_state = EvictorState()
        manager.stages = manager.coordinator.single_type_managers
        for stage in manager.stages:
            assert isinstance(stage, StageManager), "every cache group has a stage"
            stage.evictor_state = manager.evictor_state
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
        if tokens + num_lookahead_tokens <= self.evictor_state.capacity.get(request.request_id, 0):
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
            self.evictor_state.capacity[request.request_id] = self._capacity(
                request.request_id, tokens
            )
        return blocks

    def _capacity(self, request_id: str, tokens: int) -> int:
        """Tokens up to which a request needs neither a new block nor a prefix cache entry."""
        plan = self.evictor_state.plans.get(request_id)
        if plan is None:
            size = int(self.stages[0].block_size)
            capacity = len(self.stages[0].req_to_blocks[request_id]) * size
            # A full block gets an entry in the prefix cache.
            return (
                min(capacity, (tokens // size + 1) * size - 1) if self.enable_caching else capacity
            )
        if request_id in self.evictor_state.max_allocated_tokens:
            return 0  # allocations are counted until the prefill is processed
        return min(
            len(stage.req_to_blocks[request_id]) * int(stage.block_size)
            + plan.decode_dropped[stage.stage]
            for stage in self.stages
        )

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        if request.request_id not in self.evictor_state.plans:
            super().cache_blocks(request, num_computed_tokens)

    def trim(self, request_id: str) -> tuple[int, ...]:
        """Free the blocks that decoding does not need; the number that is kept, by cache group."""
        self.evictor_state.capacity.pop(request_id, None)
        return tuple(stage.trim(request_id) for stage in self.stages)
