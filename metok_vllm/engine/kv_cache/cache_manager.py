"""vLLM's KV cache manager with records of METok prompts, and a fast path where slots exist.

A prompt that goes on from a recorded one gets its blocks as a hit of vLLM's prefix cache. It may
end at any token: vLLM copies a block of which only a part is shared.
A decode step needs a new block once per block size. Checking each of several cache groups in every
step would make the scheduler slower than plain vLLM's.
Source of what is overridden: vllm/v1/core/kv_cache_manager.py, version 0.32.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from metok_vllm.engine.kv_cache.evictor import EvictorState, StageManager
from metok_vllm.engine.kv_cache.records import PrefixRecords


class StagedCacheManager(KVCacheManager):
    """All stages of all requests, over one pool."""

    evictor_state: EvictorState
    records: PrefixRecords
    stages: tuple[StageManager, ...]

    @classmethod
    def adopt(cls, manager: Any, most_records: int) -> StagedCacheManager:
        """Make the manager that vLLM's scheduler built a StagedCacheManager, in place."""
        manager.__class__ = cls
        manager.records = PrefixRecords(manager.block_pool, most_records)
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
        alone = not kwargs.get("has_scheduled_reqs", True)
        if blocks is None and alone and request.request_id in self.evictor_state.hits:
            # A block that is copied is held twice, which a pool of one request may not have room
            # for. Without a record the request fits.
            self.evictor_state.prompts.pop(request.request_id)
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
        state = self.evictor_state
        if not plan.unit and request_id in state.max_allocated_tokens:
            return 0  # allocations are counted until the prefill is processed
        cut = not plan.unit or request_id in state.heads
        dropped = plan.decode_dropped if cut else plan.prefill_dropped
        return min(
            len(stage.req_to_blocks[request_id]) * int(stage.block_size) + dropped[stage.stage]
            for stage in self.stages
        )

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        if request.request_id not in self.evictor_state.plans:
            super().cache_blocks(request, num_computed_tokens)

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        request_id, state = request.request_id, self.evictor_state
        plan, prompt = state.plans.get(request_id), state.prompts.get(request_id)
        if plan is None:
            stock: tuple[KVCacheBlocks, int, int] = super().get_computed_blocks(request)
            return stock
        state.hits.discard(request_id)
        found = None
        if prompt is not None and self.prefix_cache_lookup_enabled(request):
            found = self.records.find(prompt)
        if found is None:
            return self.empty_kv_cache_blocks, 0, 0
        record, tokens = found
        state.hits.add(request_id)
        counts = (stage.blocks(tokens - plan.prefill_dropped[stage.stage]) for stage in self.stages)
        both = zip(record.blocks, counts, strict=True)
        return KVCacheBlocks(tuple(list(blocks[:count]) for blocks, count in both)), tokens, 0

    def keep_record(self, request: Request) -> None:
        """Record a prompt whose last row is processed, before any of its blocks is freed."""
        request_id, state = request.request_id, self.evictor_state
        prompt = state.prompts.get(request_id)
        processed = request.num_computed_tokens - request.num_in_flight_tokens
        if prompt is None or request_id in state.recorded or processed < request.num_prompt_tokens:
            return
        state.recorded.add(request_id)
        plan = state.plans[request_id]
        blocks = []
        for stage in self.stages:
            count = stage.blocks(plan.prompt_tokens - plan.prefill_dropped[stage.stage])
            blocks.append(stage.req_to_blocks[request_id][:count])
        self.records.keep(prompt, blocks)

    def free(self, request: Request) -> None:
        self.keep_record(request)
        head = self.evictor_state.heads.get(request.request_id, ())
        super().free(request)
        # A head was freed earlier: with the rest, a record ages as one.
        marked = (block for block, mark in head if mark is not None and block.block_hash is mark)
        unused = [block for block in marked if block.ref_cnt == 0]
        self.block_pool.touch(unused)
        self.block_pool.free_blocks(reversed(unused))

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        self.keep_record(request)
        blocks: list[KVCacheBlock] = super().pop_blocks_for_free(request)
        return blocks

    def reset_prefix_cache(self) -> bool:
        done: bool = super().reset_prefix_cache()
        if done:
            self.records.clear()
        return done

    def cut_head(self, request_id: str) -> None:
        """Free the blocks at the head of each stage's table that decoding does not need."""
        head = [block for stage in self.stages for block in stage.cut_head(request_id)]
        self.evictor_state.heads[request_id] = [(block, block.block_hash) for block in head]

    def trim(self, request_id: str) -> tuple[int, ...]:
        """Free the blocks that decoding does not need; the number that is kept, by cache group."""
        self.evictor_state.capacity.pop(request_id, None)
        return tuple(stage.trim(request_id) for stage in self.stages)
