"""An engine that runs METok's stages, driven step by step.

Shape suffixes: R requests of a step, D features, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.engine.engines import SMALL_DUMMIES, EnginePool, core_of, reset_caches, runner_of
from tests.reference.decoder import Generated, LanguageModel

BLOCK, NEW_TOKENS, MAX_STEPS = 32, 40, 5000

Boundaries = tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """Tokens and the log-probabilities of the whole vocabulary.

    `cached` of the `prompt_tokens` came from the prefix cache.
    """

    tokens: list[int]
    logprobs_SV: Tensor
    preemptions: int
    prompt_tokens: int
    cached: int

    def error(self, expected: Generated | Answer) -> float:
        """Largest difference of a log-probability; the tokens must be equal."""
        assert self.tokens == expected.tokens
        return float((self.logprobs_SV - expected.logprobs_SV).abs().max())


class StagedEngine:
    """vLLM in this process on a staged checkpoint; vLLM alone where `boundaries` is None.

    `reference` is the same decoder in Hugging Face. `settings` are vLLM's engine arguments.
    """

    def __init__(
        self,
        pool: EnginePool,
        folder: Path,
        reference: LanguageModel,
        boundaries: Boundaries | None,
        **settings: Any,
    ) -> None:
        values: dict[str, Any] = {
            "model": str(folder),
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": BLOCK,
            "max_model_len": 2048,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 16,
            "max_logprobs": -1,
            "limit_mm_per_prompt": {"image": 1, "video": {"count": 2, **SMALL_DUMMIES}},
            # More than the tests use, and far less than vLLM would allocate and clear. Blocks of
            # the stock engine hold all layers.
            "num_gpu_blocks_override": 1024 if boundaries is None else 4096,
            **settings,
        }
        if boundaries is not None:
            values["additional_config"] = {"metok": {"pruning_layers": list(boundaries)}}
        self.boundaries = boundaries
        self.reference = reference
        self.llm = pool.get(**values)
        self.scheduler: Any = core_of(self.llm).scheduler
        self.runner: Any = runner_of(self.llm)
        self.model: Any = self.runner.get_model()
        self.step_tokens: int = (
            self.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        )

    @property
    def block_pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    @cached_property
    def managers(self) -> Sequence[Any]:
        """vLLM's block managers, one per cache group."""
        managers: Sequence[Any] = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return managers

    def reset_caches(self) -> None:
        reset_caches(self.llm)

    def answer(
        self,
        prompts: Sequence[Any],
        new_tokens: int = NEW_TOKENS,
        arrivals: Sequence[int] | None = None,
        aborts: Mapping[int, int] | None = None,
    ) -> list[Answer | None]:
        """Greedy answers; all blocks are accounted for after every step.

        `arrivals` are the steps before which each prompt is added (default: all before the first).
        `aborts` maps a prompt to the number of new tokens after which it is aborted: its answer is
        None.
        """
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        params = SamplingParams(
            max_tokens=new_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
        )
        assert not self.scheduler.requests, "an earlier test failed half-way"
        waiting = list(range(len(prompts)))
        open_ids: dict[str, str] = {}
        preemptions: Counter[str] = Counter()
        logits: dict[str, list[Tensor]] = defaultdict(list)
        answers: list[Answer | None] = [None] * len(prompts)
        aborts = dict(aborts or {})
        for step in range(MAX_STEPS):
            for index in list(waiting):
                if arrivals is None or arrivals[index] <= step:
                    waiting.remove(index)
                    open_ids[str(index)] = engine.add_request(str(index), prompts[index], params)
            self._abort(aborts, open_ids, {})
            with self._sampled_rows() as row_of:
                outputs = engine.step()
            for request in self.scheduler.requests.values():
                preemptions[request.request_id] = request.num_preemptions
            self.check_blocks()
            done = {output.request_id: len(output.outputs[0].token_ids) for output in outputs}
            for output in outputs:
                request_id = open_ids[output.request_id]
                logits[request_id].append(row_of[request_id])
                if output.finished:
                    del open_ids[output.request_id]
                    answers[int(output.request_id)] = Answer(
                        list(output.outputs[0].token_ids),
                        torch.stack(logits[request_id]).log_softmax(dim=-1),
                        preemptions[request_id],
                        len(output.prompt_token_ids),
                        output.num_cached_tokens,
                    )
            self._abort(aborts, open_ids, done)
            if not waiting and not engine.has_unfinished_requests():
                break
        assert not open_ids
        assert self.block_pool.get_num_free_blocks() == self.block_pool.num_gpu_blocks - 1
        return answers

    def answer_alone(self, prompt: Any, new_tokens: int = NEW_TOKENS) -> Answer:
        """The answer to one prompt."""
        (answer,) = self.answer([prompt], new_tokens)
        assert answer is not None
        return answer

    @contextmanager
    def _sampled_rows(self) -> Iterator[dict[str, Tensor]]:
        """Logits [V] of a step by request id; much cheaper than vLLM's own lists of them."""
        rows: dict[str, Tensor] = {}
        compute = self.model.compute_logits

        def compute_logits(hidden_RD: Tensor) -> Tensor:
            logits_RV: Tensor = compute(hidden_RD)
            rows.update(zip(self.runner.input_batch.req_ids, logits_RV.float(), strict=True))
            return logits_RV

        with mock.patch.object(self.model, "compute_logits", compute_logits):
            yield rows

    def _abort(
        self, aborts: dict[int, int], open_ids: dict[str, str], done: Mapping[str, int]
    ) -> None:
        for index, tokens in list(aborts.items()):
            if str(index) in open_ids and done.get(str(index), 0) >= tokens:
                self.llm.llm_engine.abort_request([str(index)])
                del aborts[index], open_ids[str(index)]
                self.check_blocks()

    def check_blocks(self) -> None:
        """Every block is free or held; scheduler and worker agree on who holds which."""
        holders: Counter[int] = Counter()
        metok: Counter[int] = Counter()
        plans = self.scheduler.evictor_state.plans if self.boundaries else {}
        for manager in self.managers:
            for request_id, blocks in manager.req_to_blocks.items():
                ids = [block.block_id for block in blocks]
                holders.update(ids)
                if request_id in plans and plans[request_id].core is None:
                    metok.update(ids)
        # Others may share a prefix; these requests' blocks belong to one alone.
        pool = self.block_pool
        assert all(holders[block] == 1 for block in metok)
        assert all(pool.blocks[block].ref_cnt == n for block, n in holders.items())
        assert pool.get_num_free_blocks() + len(holders) == pool.num_gpu_blocks - 1
        if not self.boundaries:
            return
        assert set(plans) <= set(self.scheduler.requests)
        assert set(self.scheduler.evictor_state.max_allocated_tokens) <= set(plans)
        worker = self.runner.metok_evictor_state()
        assert worker["total_blocks"] in (None, pool.num_gpu_blocks - 1)
        for request in self.scheduler.running:
            if request.request_id in worker["requests"]:
                reported = dict(worker["requests"][request.request_id])
                tokens = reported.pop("tokens")
                held = self.held()[request.request_id]
                blocks = reported.pop("blocks")
                assert reported == {"metok": request.request_id in plans}
                if blocks != held:
                    # Scheduler and worker drop the head of a table at different times.
                    more = [abs(a - b) for a, b in zip(blocks, held, strict=True)]
                    assert more == self.heads(request.request_id)
                # From the step's start; the step itself computed at least one more.
                assert 0 <= tokens < request.num_computed_tokens

    def heads(self, request_id: str) -> list[int]:
        """Blocks at the head of a request's tables, by cache group, that decoding does not need."""
        plan = self.scheduler.evictor_state.plans[request_id]
        return [plan.head_blocks[manager.stage] for manager in self.managers]

    def held(self) -> dict[str, list[int]]:
        """Blocks of each request by cache group, from the scheduler's block managers."""
        return {
            request_id: [len(manager.req_to_blocks[request_id]) for manager in self.managers]
            for request_id in self.scheduler.requests
        }

    def measure(self, prompt: Any) -> tuple[list[int], list[int]]:
        """Blocks by cache group in the first decoding step, and the prefill's rows by layer.

        Rows are those of all chunks and row blocks together.
        """
        from vllm import SamplingParams

        layers = self.model.language_model.model.layers
        rows = [0] * len(layers)

        def count(number: int) -> Any:
            def add(_module: Any, args: Any) -> None:
                rows[number] += len(args[1])

            return add

        hooks = [
            layer.register_forward_pre_hook(count(number)) for number, layer in enumerate(layers)
        ]
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)
        self.reset_caches()
        request_id = self.llm.llm_engine.add_request("one", prompt, params)
        self.llm.llm_engine.step()
        request = self.scheduler.requests[request_id]
        while request.num_computed_tokens < request.num_prompt_tokens:
            self.llm.llm_engine.step()
        for hook in hooks:
            hook.remove()
        self.llm.llm_engine.step()
        self.check_blocks()
        (held,) = self.held().values()
        self.llm.llm_engine.abort_request(["one"])
        return held, rows
