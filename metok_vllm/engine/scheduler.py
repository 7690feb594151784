"""vLLM's schedulers with METok: whole prompts in one step, freed KV blocks back to the pool.

Source of what is overridden: vllm/v1/core/sched/scheduler.py, version 0.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from metok_vllm.engine.kv_cache.cache_manager import StagedCacheManager
from metok_vllm.engine.request_plans import (
    ATTRIBUTE,
    StagedSchedulerOutput,
    plan_of,
    step_tokens,
)
from metok_vllm.plan.prompt import PromptPlan

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import SchedulerSurface
else:
    SchedulerSurface = object

# On a CPU, METok prompts share a step up to so many tokens; a longer one has its own. More rows
# make no matrix product faster there, and all prompts of a step wait for its last one. Tensors of
# more than 32 MB are fresh memory to glibc each time: a page fault for every 4 KB.
CPU_PROMPT_TOKENS = 2048


class StagedScheduling(SchedulerSurface):
    """Mixed in before one of vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache = StagedCacheManager.adopt(self.kv_cache_manager)
        self.evictor_state = self.cache.evictor_state
        self.step_tokens = step_tokens(self.vllm_config)
        # Limit on METok prompt tokens that share a step, None for vLLM's budget, and how many are
        # in the step that is being scheduled.
        self.shared_tokens = CPU_PROMPT_TOKENS if current_platform.is_cpu() else None
        self.prompt_tokens = 0

    def add_request(self, request: Request) -> None:
        # The prompt of a resumable (streaming) request grows, so no plan of it would hold.
        if (
            request.request_id not in self.requests
            and request.prompt_token_ids is not None
            and not request.resumable
        ):
            plan = plan_of(
                request.num_prompt_tokens,
                request.mm_features,
                request.sampling_params,
                self.step_tokens,
            )
            if plan is not None:
                self.evictor_state.plans[request.request_id] = plan
                # Deep layers of a cached prefix hold tokens that another question selected.
                request.skip_reading_prefix_cache = True
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        trims = self._evict()
        self.prompt_tokens = 0
        output = super().schedule(*args, **kwargs)
        plans = self.evictor_state.plans
        new = (request.req_id for request in output.scheduled_new_reqs)
        pool = self.kv_cache_manager.block_pool
        staged = StagedSchedulerOutput(
            plans={request_id: plans[request_id] for request_id in new if request_id in plans},
            trims=trims,
            total_blocks=pool.num_gpu_blocks - 1,
            free_blocks=pool.get_num_free_blocks(),
            freed_blocks=self.evictor_state.freed_blocks,
        )
        setattr(output, ATTRIBUTE, staged)
        return output

    def _evict(self) -> dict[str, tuple[int, ...]]:
        """Free blocks of every request whose prefill is processed, before any are allocated."""
        trims = {}
        for request_id in list(self.evictor_state.max_allocated_tokens):
            request, plan = self.requests[request_id], self.evictor_state.plans[request_id]
            processed = request.num_computed_tokens - request.num_in_flight_tokens
            if processed < plan.prompt_tokens:
                continue
            if plan.evicts:
                trims[request_id] = self.cache.trim(request_id)
            del self.evictor_state.max_allocated_tokens[request_id]
        return trims

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """The last place that may shorten a prefill: a METok prompt runs whole or waits.

        After a preemption, the outputs so far follow in a step of their own, with the cache as it
        was when they were decoded.
        """
        plan = self.evictor_state.plans.get(request.request_id)
        rest = 0 if plan is None else plan.prompt_tokens - num_computed_tokens
        if plan is not None and rest > 0:
            num_new_tokens = self._rows_now(plan, num_computed_tokens, num_new_tokens)
        decided: tuple[list[int], int, int, list[int], list[int]]
        decided = super()._try_schedule_encoder_inputs(
            request,
            num_computed_tokens,
            num_new_tokens,
            encoder_compute_budget,
            shift_computed_tokens,
        )
        if plan is not None and rest > 0 and plan.one_step and decided[1] < rest:
            # Release its encoder cache entries, so that earlier requests can use the space.
            self.encoder_cache_manager.free(request)
            return [], 0, encoder_compute_budget, [], []
        if plan is not None and rest > 0:
            self.prompt_tokens += decided[1]
        return decided

    def _rows_now(self, plan: PromptPlan, computed: int, offered: int) -> int:
        """Rows of a METok prompt to run in this step, of those offered; 0 if it must wait."""
        rest = plan.prompt_tokens - computed
        if plan.one_step:
            return rest if offered >= rest and self._may_join(rest) else 0
        if offered >= rest:
            return rest
        if plan.prompt_tokens - plan.last_visual > self.step_tokens:
            return offered
        # The text after the videos runs in one chunk, so that none of it must be saved.
        return min(offered, max(plan.last_visual - computed, 0))

    def _may_join(self, tokens: int) -> bool:
        """Whether a METok prompt may run in the step that is being scheduled."""
        limit, others = self.shared_tokens, self.prompt_tokens
        return limit is None or not others or others + tokens <= limit

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)
        self.evictor_state.drop(request.request_id)
        return result


class MetokScheduler(StagedScheduling, Scheduler):
    """METok with synchronous scheduling."""


class MetokAsyncScheduler(StagedScheduling, AsyncScheduler):
    """METok with asynchronous scheduling."""


def make_scheduler(vllm_config: Any, **kwargs: Any) -> StagedScheduling:
    """The scheduler for a configuration; vLLM decides late whether it schedules ahead."""
    ahead = vllm_config.scheduler_config.async_scheduling
    scheduler = MetokAsyncScheduler if ahead else MetokScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
