"""An engine without a model: requests arrive and end, steps are scheduled and delivered.

`invariants` are checked after every call into the scheduler.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from metok_vllm.engine.request_plans import ATTRIBUTE, plan_of
from metok_vllm.plan.prompt import PromptPlan
from tests.scheduling.arrivals import Arrival, PromptSpec, make_arrival
from tests.scheduling.paper_worker import Names, PaperWorker
from tests.scheduling.settings import Settings, make_config, make_scheduler


@dataclass
class Life:
    """The expected state of a request, counted apart from the scheduler. `found`: tokens of another
    prompt that it goes on from.

    `begun` is its number of preemptions. Since the last one, `scheduled` are its tokens with slots
    after each step and `processed` those of delivered steps.
    """

    arrival: Arrival
    plan: PromptPlan | None
    begun: int = 0
    scheduled: tuple[int, ...] = ()
    processed: int = 0
    trimmed: bool = False
    found: int = 0


@dataclass(frozen=True)
class Step:
    """A step in flight: the blocks it writes, the requests that sample, and their lives."""

    output: Any
    written: dict[str, list[set[int]]]
    samples: frozenset[str]
    lives: dict[str, tuple[int, int]]


class Drive:
    """Scheduler, managers and paper worker of one engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config = make_config(settings)
        self.scheduler = make_scheduler(self.config, settings)
        self.contents: dict[str, Names] = {}
        self.cores: dict[str, int | None] = {}
        self.worker = PaperWorker(self.config, settings, self.contents, self.cores)
        self.lives: dict[str, Life] = {}
        self.first_with: dict[tuple[bytes, bytes], str] = {}  # the first request with a prompt
        self.in_flight: deque[Step] = deque()
        self.counts: Counter[str] = Counter()

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    @property
    def managers(self) -> Any:
        return self.scheduler.kv_cache_manager.coordinator.single_type_managers

    @property
    def alive(self) -> list[str]:
        """Requests that have not finished, in order of arrival."""
        return [name for name in self.lives if name in self.scheduler.requests]

    def arrive(self, spec: PromptSpec) -> str:
        """A request joins the queue; its name."""
        name = f"r{self.counts['arrived']}"
        arrival = make_arrival(spec, name, self.settings.block_size)
        request = arrival.request
        features, params = request.mm_features, request.sampling_params
        plan = plan_of(request.prompt_token_ids, features, params, self.settings.block_size)
        if spec.resumable:
            plan = None
        self.lives[name] = Life(arrival, plan)
        self.contents[name] = arrival.content
        self.cores[name] = arrival.core
        assert plan is None or plan.core == arrival.core
        self.scheduler.add_request(request)
        prompt = self.scheduler.evictor_state.prompts.get(name)
        if prompt is not None:
            self.first_with.setdefault((prompt.key, prompt.rest.tobytes()), name)
        self.counts["arrived"] += 1
        self.counts["metok"] += plan is not None
        return name

    def abort(self, name: str) -> None:
        """Abort a request."""
        self.counts["aborted"] += 1
        flying = any(name in step.samples for step in self.in_flight)
        self.counts["aborted in flight"] += flying
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def forget_prefixes(self) -> None:
        """Preempt all running requests; their outputs in flight are dropped."""
        self.counts["reset"] += 1
        assert self.scheduler.reset_prefix_cache(reset_running_requests=True)

    def schedule(self) -> Any:
        """Schedule and run a step; its output stays in flight."""
        before = {name: request.num_computed_tokens for name, request in self._requests()}
        preempted = {name: request.num_preemptions for name, request in self._requests()}
        for life in self.lives.values():
            life.trimmed |= life.plan is not None and life.processed >= life.plan.decode_from
        output = self.scheduler.schedule()
        self.counts["preempted"] += sum(
            request.num_preemptions - preempted[name] for name, request in self._requests()
        )
        self.counts["trimmed"] += len(getattr(output, ATTRIBUTE).trims)
        written = self.worker.execute(output)
        lives, samples = {}, set()
        for name, count in output.num_scheduled_tokens.items():
            request, life = self.scheduler.requests[name], self.lives[name]
            if request.num_preemptions != life.begun:
                life.begun, life.scheduled, life.processed = request.num_preemptions, (), 0
                life.trimmed = False
                before[name] = 0
            begin = request.num_computed_tokens - count
            if not life.scheduled and life.plan is not None:
                self._begin(name, begin)
            life.scheduled += (begin + count,)
            lives[name] = (life.begun, begin + count)
            if not request.is_prefill_chunk:
                samples.add(name)
            if life.plan is not None and begin < life.plan.decode_from:
                assert begin + count <= life.plan.decode_from, "two views in a step"
            if life.plan is not None and begin < life.plan.prompt_tokens:
                assert begin + count <= life.plan.prompt_tokens, "a step crosses a prompt's end"
                chunks = begin > 0 and not life.found
                self.counts["chunked"] += chunks and begin + count == life.plan.prompt_tokens
        self._check_prompts_share_a_step(self._prefills(output))
        self.counts["steps"] += 1
        if output.total_num_scheduled_tokens:
            self.in_flight.append(Step(output, written, frozenset(samples), lives))
        return output

    def _begin(self, name: str, found: int) -> None:
        """A request begins, or goes on from another's prompt after `found` tokens."""
        life = self.lives[name]
        assert life.plan is not None
        life.found = found
        if found:
            core = self.cores[name]
            assert core is not None
            assert core <= found < life.plan.prompt_tokens
            self.counts["found"] += 1
            self.counts["found again"] += life.begun > 0

    def deliver(self) -> None:
        """Give the scheduler the tokens of the oldest step in flight."""
        step = self.in_flight.popleft()
        names = list(step.output.num_scheduled_tokens)
        tokens = []
        for name in names:
            request, life = self.scheduler.requests.get(name), self.lives[name]
            said = 0 if request is None else request.num_output_tokens
            more = name in step.samples and said < len(life.arrival.answer)
            tokens.append([life.arrival.answer[said]] if more else [])
            begun, total = step.lives[name]
            if begun == life.begun:
                life.processed = total
        index = {name: number for number, name in enumerate(names)}
        before = len(self.scheduler.requests)
        self.scheduler.update_from_output(step.output, ModelRunnerOutput(names, index, tokens))
        self.counts["finished"] += before - len(self.scheduler.requests)

    def _requests(self) -> list[tuple[str, Any]]:
        return list(self.scheduler.requests.items())

    def _prefills(self, output: Any) -> dict[str, int]:
        """Rows of METok prompts in a step, by request."""
        return {
            name: count
            for name, count in output.num_scheduled_tokens.items()
            if (plan := self.lives[name].plan)
            and self.scheduler.requests[name].num_computed_tokens <= plan.prompt_tokens
            and not self.lives[name].found
        }

    def _check_prompts_share_a_step(self, prefills: dict[str, int]) -> None:
        """METok prompts run together up to a number of rows; more of one run by themselves.

        At most one of them brings more rows of earlier chunks along than a step may have.
        """
        self.counts["together"] += len(prefills) > 1
        shared = self.settings.shared
        assert shared is None or len(prefills) < 2 or sum(prefills.values()) <= shared
        further = []
        for name, count in prefills.items():
            plan = self.lives[name].plan
            assert plan is not None
            if self.scheduler.requests[name].num_computed_tokens == plan.prompt_tokens:
                further.append(max(plan.prompt_tokens - plan.prefill_dropped[1] - count, 0))
        others = [rows for rows in further if rows]
        assert len(others) < 2 or sum(others) <= self.settings.batched
