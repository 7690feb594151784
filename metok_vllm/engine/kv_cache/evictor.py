"""The block evictor: a stage's block table holds what the stage holds, and no more.

While a METok prompt is prefilled, a stage gets slots for the tokens that it runs on. Once that step
is processed, what decoding does not need is at the end of the table (the model wrote the rest to
the front), and these blocks go back to the pool at once.
Source of what is overridden: vllm/v1/core/single_type_kv_cache_manager.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from metok_vllm.engine.kv_cache.evictor_state import EvictorState
from metok_vllm.engine.kv_cache.spec import StageSpec


class StageManager(FullAttentionManager):  # type: ignore[misc]
    """Blocks of one cache group. Requests without a plan are vLLM's own business."""

    def __init__(self, kv_cache_spec: StageSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.stage = kv_cache_spec.stage
        self.books = EvictorState()  # replaced by the scheduler's, one for all stages

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        plan = self.books.plans.get(request_id)
        if plan is None:
            needed: int = super().get_num_blocks_to_allocate(
                request_id,
                num_tokens,
                new_computed_blocks,
                total_computed_tokens,
                num_local_computed_tokens,
                num_tokens_main_model,
                apply_admission_cap,
                prefill_end,
            )
            return needed
        slots = plan.slots(self.stage, num_tokens)
        if apply_admission_cap:
            # Admission asks about the whole request: a prefill may need more than what follows.
            slots = max(slots, plan.slots(self.stage, plan.prompt_tokens))
        return max(self._blocks(slots) - len(self.req_to_blocks.get(request_id, ())), 0)

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        plan = self.books.plans.get(request_id)
        if plan is None:
            return self._allocate(request_id, num_tokens, num_tokens_main_model)
        reach = self.books.reach
        if not self.req_to_blocks.get(request_id):
            reach[request_id] = 0
        if request_id in reach:
            reach[request_id] = max(reach[request_id], num_tokens)
        slots = plan.slots(self.stage, num_tokens)
        return self._allocate(request_id, slots, slots)

    def _allocate(self, request_id: str, slots: int, main: int) -> list[KVCacheBlock]:
        blocks: list[KVCacheBlock] = super().allocate_new_blocks(request_id, slots, main)
        return blocks

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        # What a METok request holds was selected by its question: no other prompt may find it.
        if request.request_id not in self.books.plans:
            super().cache_blocks(request, num_tokens, *args, **kwargs)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        self.books.release(request_id)
        blocks: list[KVCacheBlock] = super().pop_blocks_for_free(request_id)
        return blocks

    def trim(self, request_id: str) -> int:
        """Free the tail that decoding does not need; how many blocks the request still holds.

        Steps in flight may have slots beyond the prompt: nothing that was handed out since the
        prefill began is taken back, or another request would write to it.
        """
        plan = self.books.plans[request_id]
        tokens = max(plan.prompt_tokens, self.books.reach[request_id])
        keep = self._blocks(tokens - plan.decode_dropped[self.stage])
        blocks = self.req_to_blocks[request_id]
        tail = blocks[keep:]
        if tail:
            del blocks[keep:]
            self.block_pool.free_blocks(reversed(tail))
            self.books.freed_blocks += len(tail)
        return len(blocks)

    def _blocks(self, slots: int) -> int:
        return -(-slots // int(self.block_size))


def register() -> None:
    """Make the spec and its manager known to vLLM."""
    # Registering first would keep vLLM from registering its own.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(StageSpec, StageManager, StageSpec)
