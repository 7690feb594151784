"""vLLM's schedulers with METok: chunks of METok prompts, freed KV blocks back to the pool.

Source of what is overridden: vllm/v1/core/sched/scheduler.py, version 0.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from metok_vllm.config import METokConfig
from metok_vllm.engine.kv_cache.buffer_rows import BufferRows, buffer_size
from metok_vllm.engine.kv_cache.cache_manager import StagedCacheManager
from metok_vllm.engine.kv_cache.records import CorePrompt
from metok_vllm.engine.request_costs import log_costs
from metok_vllm.engine.request_plans import (
    ATTRIBUTE,
    StagedSchedulerOutput,
    plan_of,
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
        most_records = 4 * int(self.vllm_config.scheduler_config.max_num_seqs)
        self.cache = StagedCacheManager.adopt(self.kv_cache_manager, most_records)
        self.evictor_state = self.cache.evictor_state
        config = METokConfig.from_dict(self.vllm_config.model_config.hf_config.metok)
        self.evictor_state.buffer = BufferRows(buffer_size(config, self.vllm_config))
        self.most_rows = int(self.vllm_config.scheduler_config.max_num_batched_tokens)
        # Limit on METok prompt rows that share a step, None for vLLM's budget. In the step that is
        # being scheduled: such rows, and rows of earlier chunks that its last chunks bring along.
        self.shared_rows = CPU_PROMPT_TOKENS if current_platform.is_cpu() else None
        self.prompt_rows = self.further_rows = 0
        # Tokens of each request that were cached when the workers first got it. Their media have no
        # data there.
        self.covered_tokens: dict[str, int] = {}
        self.prefix_hits = self.prefix_tokens = 0

    def add_request(self, request: Request) -> None:
        # The prompt of a resumable (streaming) request grows, so no plan of it would hold.
        if (
            request.request_id not in self.requests
            and request.prompt_token_ids is not None
            and not request.resumable
        ):
            plan = plan_of(
                request.prompt_token_ids,
                request.mm_features,
                request.sampling_params,
                int(self.cache.stages[0].block_size),
            )
            if plan is not None:
                self.evictor_state.plans[request.request_id] = plan
                prompt = CorePrompt.of(request, plan) if self.cache.enable_caching else None
                if prompt is None:
                    # Deep layers of a cached prefix hold tokens that another question selected.
                    request.skip_reading_prefix_cache = True
                else:
                    self.evictor_state.prompts[request.request_id] = prompt
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        trims = self._evict()
        self.prompt_rows = self.further_rows = 0
        output = super().schedule(*args, **kwargs)
        buffer = self.evictor_state.buffer
        if len(buffer):
            # A request that found no KV blocks waits without rows, or it could block one before it.
            buffer.keep({request.request_id for request in self.running})
        pool = self.kv_cache_manager.block_pool
        staged = StagedSchedulerOutput(
            plans=self._begin(output),
            buffer_rows={
                request_id: row
                for request_id in output.num_scheduled_tokens
                if (row := buffer.first_row(request_id)) is not None
            },
            trims=trims,
            total_blocks=pool.num_gpu_blocks - 1,
            free_blocks=pool.get_num_free_blocks(),
            freed_blocks=self.evictor_state.freed_blocks,
            features=self._features_again(output),
            prefix_hits=self.prefix_hits,
            prefix_tokens=self.prefix_tokens,
            prefix_records=len(self.cache.records),
        )
        setattr(output, ATTRIBUTE, staged)
        return output

    def _begin(self, output: SchedulerOutput) -> dict[str, PromptPlan]:
        """The plans of requests that are new to the workers; counts those that go on."""
        begun = {}
        for request in output.scheduled_new_reqs:
            plan, computed = (
                self.evictor_state.plans.get(request.req_id),
                request.num_computed_tokens,
            )
            if computed and request.mm_features:
                self.covered_tokens[request.req_id] = computed
            if plan is not None:
                begun[request.req_id] = plan
                self.prefix_hits += computed > 0
                self.prefix_tokens += computed
        return begun

    def _features_again(self, output: SchedulerOutput) -> dict[str, Any]:
        """Media to encode whose data the workers did not get, as a cached prefix covered them."""
        again = {}
        for request_id, inputs in output.scheduled_encoder_inputs.items():
            covered = self.covered_tokens.get(request_id)
            if covered is None:
                continue
            features = self.requests[request_id].mm_features
            # What travels by shared memory is sent in any case.
            own = (features[n] for n in inputs if features[n].data is not None)
            places = [f.mm_position for f in own if "address" not in f.data]
            if any(place.offset + place.length <= covered for place in places):
                again[request_id] = features
                del self.covered_tokens[request_id]
        return again

    def _evict(self) -> dict[str, tuple[int, ...]]:
        """Free blocks of every request whose prefill is processed, before any are allocated."""
        trims = {}
        for request_id in list(self.evictor_state.max_allocated_tokens):
            request, plan = self.requests[request_id], self.evictor_state.plans[request_id]
            processed = request.num_computed_tokens - request.num_in_flight_tokens
            if processed < plan.prompt_tokens:
                continue
            self.evictor_state.buffer.release(request_id)
            self.cache.keep_record(request)
            if processed < plan.decode_from:
                continue
            if plan.unit:
                self.cache.cut_head(request_id)
            elif plan.evicts:
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
        """The last place that may shorten a prefill: what a METok prompt runs in this step.

        After a preemption, the outputs so far follow in steps of their own, with the cache as it
        was when they were decoded.
        """
        plan = self.evictor_state.plans.get(request.request_id)
        rest = 0 if plan is None else plan.prompt_tokens - num_computed_tokens
        goes_on = request.request_id in self.evictor_state.hits
        if plan is not None and rest > 0:
            rows = min(num_new_tokens, rest)
            num_new_tokens = rows if goes_on else self._rows_now(plan, rest, rows)
        elif plan is not None and num_computed_tokens < plan.decode_from:
            num_new_tokens = min(num_new_tokens, plan.decode_from - num_computed_tokens)
        decided: tuple[list[int], int, int, list[int], list[int]]
        decided = super()._try_schedule_encoder_inputs(
            request,
            num_computed_tokens,
            num_new_tokens,
            encoder_compute_budget,
            shift_computed_tokens,
        )
        if plan is None or rest <= 0 or goes_on:
            return decided
        if 0 < decided[1] < rest and not self._reserve_buffer(request.request_id, plan):
            # Release its encoder cache entries, so that earlier requests can use the space.
            self.encoder_cache_manager.free(request)
            return [], 0, encoder_compute_budget, [], []
        self.prompt_rows += decided[1]
        if decided[1] == rest:
            self.further_rows += self._further_rows(plan, rest)
        return decided

    def _rows_now(self, plan: PromptPlan, rest: int, rows: int) -> int:
        """Rows of a METok prompt to run in this step, of those offered; 0 if it must wait.

        The last chunk brings the kept rows of earlier ones along. They are not part of vLLM's
        budget, so at most one prompt with more of them than the budget ends in a step.
        """
        shared, further = self.prompt_rows + rows, self.further_rows
        if self.shared_rows is not None and self.prompt_rows and shared > self.shared_rows:
            return 0
        if rows == rest and further and further + self._further_rows(plan, rest) > self.most_rows:
            return 0
        return rows

    def _further_rows(self, plan: PromptPlan, rest: int) -> int:
        return max(plan.prompt_tokens - plan.prefill_dropped[1] - rest, 0)

    def _reserve_buffer(self, request_id: str, plan: PromptPlan) -> bool:
        return self.evictor_state.buffer.reserve(request_id, plan.prompt_tokens)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)
        self.evictor_state.drop(request.request_id)
        self.covered_tokens.pop(request.request_id, None)
        return result


class MetokScheduler(StagedScheduling, Scheduler):
    """METok with synchronous scheduling."""


class MetokAsyncScheduler(StagedScheduling, AsyncScheduler):
    """METok with asynchronous scheduling."""


def make_scheduler(vllm_config: Any, **kwargs: Any) -> StagedScheduling:
    """The scheduler for a configuration; vLLM decides late whether it schedules ahead."""
    # Earlier, vLLM has not chosen its block size.
    log_costs(METokConfig.from_dict(vllm_config.model_config.hf_config.metok), vllm_config)
    ahead = vllm_config.scheduler_config.async_scheduling
    scheduler = MetokAsyncScheduler if ahead else MetokScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
