"""The block evictor: a stage's block table has blocks for the tokens that the stage caches.

In the prefill of a METok prompt, a stage gets slots for the tokens that it runs on. The model
writes those that decoding needs to the front of the table. Once the step is processed, the blocks
at the end return to the pool. Of a prompt that later ones may go on from, the model writes those
that decoding does not need to the front, and the blocks at the head return to the pool.
Source of what is overridden: vllm/v1/core/single_type_kv_cache_manager.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from metok_vllm.engine.kv_cache.buffer_rows import BufferRows
from metok_vllm.engine.kv_cache.records import CorePrompt
from metok_vllm.engine.kv_cache.spec import StageSpec
from metok_vllm.plan.prompt import PromptPlan


@dataclass
class EvictorState:
    """Plans and allocations by request id, shared by the block managers of all stages.

    `max_allocated_tokens` is the largest number of tokens that a request got slots for since its
    prefill began; trimming removes the entry. `capacity` is the number of tokens up to which a
    request has slots in every stage.

    `prompts` are those that others may go on from, `hits` the requests that go on from one,
    `recorded` those whose prompt is recorded, `heads` the blocks, with their marks, of requests
    whose tables have lost their head.
    """

    plans: dict[str, PromptPlan] = field(default_factory=dict)
    max_allocated_tokens: dict[str, int] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, CorePrompt] = field(default_factory=dict)
    hits: set[str] = field(default_factory=set)
    recorded: set[str] = field(default_factory=set)
    heads: dict[str, list[tuple[KVCacheBlock, bytes | None]]] = field(default_factory=dict)
    buffer: BufferRows = field(default_factory=lambda: BufferRows(0))
    freed_blocks: int = 0

    def release(self, request_id: str) -> None:
        """The request ended or was preempted: its blocks are back in the pool."""
        self.max_allocated_tokens.pop(request_id, None)
        self.capacity.pop(request_id, None)
        self.hits.discard(request_id)
        self.recorded.discard(request_id)
        self.heads.pop(request_id, None)
        self.buffer.release(request_id)

    def drop(self, request_id: str) -> None:
        """The request ended."""
        self.plans.pop(request_id, None)
        self.prompts.pop(request_id, None)
        self.release(request_id)


class StageManager(FullAttentionManager):
    """Blocks of one cache group; requests without a plan take vLLM's own path."""

    def __init__(self, kv_cache_spec: StageSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.stage = kv_cache_spec.stage
        self.evictor_state = EvictorState()  # replaced by the scheduler's, one for all stages

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
        plan = self.evictor_state.plans.get(request_id)
        if plan is not None:
            slots = self.slots(request_id, plan, num_tokens)
            if apply_admission_cap:
                # The whole request counts: a prefill may need more blocks than decoding.
                slots = max(slots, self.slots(request_id, plan, plan.prompt_tokens))
                apply_admission_cap = False
            found = self.slots(request_id, plan, num_local_computed_tokens)
            num_tokens = num_tokens_main_model = slots
            total_computed_tokens = num_local_computed_tokens = found
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

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        plan, tokens = self.evictor_state.plans.get(request_id), num_local_computed_tokens
        if plan is not None:
            self.evictor_state.max_allocated_tokens[request_id] = tokens
            tokens = self.slots(request_id, plan, tokens)
        super().add_local_computed_blocks(
            request_id, new_computed_blocks, tokens, num_external_computed_tokens
        )

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        plan = self.evictor_state.plans.get(request_id)
        if plan is None:
            return self._allocate(request_id, num_tokens, num_tokens_main_model)
        allocated = self.evictor_state.max_allocated_tokens
        if not self.req_to_blocks.get(request_id):
            allocated[request_id] = 0
        if request_id in allocated:
            allocated[request_id] = max(allocated[request_id], num_tokens)
        slots = self.slots(request_id, plan, num_tokens)
        return self._allocate(request_id, slots, slots)

    def _allocate(self, request_id: str, slots: int, main: int) -> list[KVCacheBlock]:
        blocks: list[KVCacheBlock] = super().allocate_new_blocks(request_id, slots, main)
        return blocks

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        # The blocks of a METok request hold tokens that its question selected: never share them.
        if request.request_id not in self.evictor_state.plans:
            super().cache_blocks(request, num_tokens, *args, **kwargs)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        self.evictor_state.release(request_id)
        blocks: list[KVCacheBlock] = super().pop_blocks_for_free(request_id)
        return blocks

    def slots(self, request_id: str, plan: PromptPlan, num_tokens: int) -> int:
        """Slots that a request's block table needs for its first `num_tokens` tokens."""
        if num_tokens < plan.prompt_tokens:
            whole = request_id in self.evictor_state.hits
        else:
            whole = plan.unit > 0 and request_id not in self.evictor_state.heads
            if plan.unit and not whole:
                return num_tokens - plan.decode_dropped[self.stage]
        if whole:
            return num_tokens - plan.prefill_dropped[self.stage]
        return plan.slots(self.stage, num_tokens)

    def cut_head(self, request_id: str) -> list[KVCacheBlock]:
        """Free the blocks at the head that decoding does not need. Nothing writes to them."""
        count = self.evictor_state.plans[request_id].head_blocks[self.stage]
        blocks = self.req_to_blocks[request_id]
        head: list[KVCacheBlock] = blocks[:count]
        del blocks[:count]
        self.block_pool.free_blocks(reversed(head))
        self.evictor_state.freed_blocks += len(head)
        return head

    def trim(self, request_id: str) -> int:
        """Free the blocks that decoding does not need; the number that the request keeps.

        Steps in flight may write to slots beyond the prompt, so every slot allocated since the
        prefill began stays.
        """
        plan = self.evictor_state.plans[request_id]
        tokens = max(plan.prompt_tokens, self.evictor_state.max_allocated_tokens[request_id])
        keep = self.blocks(tokens - plan.decode_dropped[self.stage])
        blocks = self.req_to_blocks[request_id]
        tail = blocks[keep:]
        if tail:
            del blocks[keep:]
            self.block_pool.free_blocks(reversed(tail))
            self.evictor_state.freed_blocks += len(tail)
        return len(blocks)

    def blocks(self, slots: int) -> int:
        """Blocks that hold so many slots."""
        return -(-slots // int(self.block_size))


def register() -> None:
    """Make the spec and its manager known to vLLM."""
    # Registering first would keep vLLM from registering its own.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(StageSpec, StageManager, StageSpec)
