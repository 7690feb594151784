"""An engine that runs METok's stages, driven step by step, and what the naive decoder answers.

Visual rows come from the engine's own encoder, which is held against its reference elsewhere; how
many tokens stay, and which, is decided by `tests.reference` alone.

Shape suffixes: S new tokens, V vocabulary, N prompt tokens, M tokens of a video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.models.request import FIELD
from tests.engine.conftest import stop_engine
from tests.engine.staged_prompts import Parts, laid_out, planned_video
from tests.reference.decoder import Generated, LanguageModel, Video, generate
from tests.reference.staged_checkpoint import embed_prompt

BLOCK, NEW_TOKENS, MAX_STEPS = 32, 40, 5000
# Closer decisions may fall differently in another order of summation: selections by the order of
# scores, tokens by logits that agree to 1e-4.
LEAST_MARGIN, LEAST_LEAD = 2e-8, 5e-4


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
    """vLLM in this process on a staged checkpoint; stock where `pruning_layers` is None."""

    def __init__(
        self,
        folder: Path,
        reference: LanguageModel,
        pruning_layers: tuple[int, int, int] | None,
        **settings: Any,
    ) -> None:
        from vllm import LLM

        values: dict[str, Any] = {
            "model": str(folder),
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": BLOCK,
            "max_model_len": 2048,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 16,
            "max_logprobs": -1,
            "limit_mm_per_prompt": {"image": 1, "video": 2},
            **settings,
        }
        if pruning_layers is not None:
            values["additional_config"] = {"metok": {"pruning_layers": list(pruning_layers)}}
        self.boundaries = pruning_layers
        self.reference = reference
        self.llm = LLM(**values)
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler: Any = core.scheduler
        self.runner: Any = core.model_executor.driver_worker.worker.model_runner
        self.model: Any = self.runner.get_model()
        self.step_tokens: int = (
            self.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        )

    def stop(self) -> None:
        stop_engine(self.llm)

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    @cached_property
    def managers(self) -> Sequence[Any]:
        managers: Sequence[Any] = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return managers

    def forget_caches(self) -> None:
        self.llm.reset_mm_cache()
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def answer(
        self,
        prompts: Sequence[Any],
        new_tokens: int = NEW_TOKENS,
        arrivals: Sequence[int] | None = None,
        aborts: Mapping[int, int] | None = None,
    ) -> list[Answer | None]:
        """Greedy answers, the books checked after every step.

        `arrivals` are the steps before which each prompt comes (default: all at first). `aborts`
        says after how many new tokens a prompt is given up: its answer is None.
        """
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        params = SamplingParams(
            max_tokens=new_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            logprobs=-1,
            flat_logprobs=True,
        )
        assert not self.scheduler.requests, "an earlier test failed half-way"
        waiting = list(range(len(prompts)))
        open_ids: dict[str, str] = {}
        preemptions: Counter[str] = Counter()
        answers: list[Answer | None] = [None] * len(prompts)
        aborts = dict(aborts or {})
        for step in range(MAX_STEPS):
            for index in list(waiting):
                if arrivals is None or arrivals[index] <= step:
                    waiting.remove(index)
                    open_ids[str(index)] = engine.add_request(str(index), prompts[index], params)
            self._give_up(aborts, open_ids, {})
            outputs = engine.step()
            for request in self.scheduler.requests.values():
                preemptions[request.request_id] = request.num_preemptions
            self.check_books()
            done = {output.request_id: len(output.outputs[0].token_ids) for output in outputs}
            for output in outputs:
                if output.finished:
                    times = preemptions[open_ids.pop(output.request_id)]
                    answers[int(output.request_id)] = _answer_of(output, times)
            self._give_up(aborts, open_ids, done)
            if not waiting and not engine.has_unfinished_requests():
                break
        assert not open_ids
        assert self.pool.get_num_free_blocks() == self.pool.num_gpu_blocks - 1
        return answers

    def _give_up(
        self, aborts: dict[int, int], open_ids: dict[str, str], done: Mapping[str, int]
    ) -> None:
        for index, tokens in list(aborts.items()):
            if str(index) in open_ids and done.get(str(index), 0) >= tokens:
                self.llm.llm_engine.abort_request([str(index)])
                del aborts[index], open_ids[str(index)]
                self.check_books()

    def check_books(self) -> None:
        """Free and held blocks are the whole pool, none is held twice, both processes agree."""
        holders: Counter[int] = Counter()
        metok: Counter[int] = Counter()
        plans = self.scheduler.books.plans if self.boundaries else {}
        for manager in self.managers:
            for request_id, blocks in manager.req_to_blocks.items():
                ids = [block.block_id for block in blocks]
                holders.update(ids)
                if request_id in plans:
                    metok.update(ids)
        # Plain requests may share a prefix; what METok selected is nobody else's.
        assert all(holders[block] == 1 for block in metok)
        assert all(self.pool.blocks[block].ref_cnt == n for block, n in holders.items())
        assert self.pool.get_num_free_blocks() + len(holders) == self.pool.num_gpu_blocks - 1
        if not self.boundaries:
            return
        assert set(plans) <= set(self.scheduler.requests)
        assert set(self.scheduler.books.reach) <= set(plans)
        books = self.runner.metok_books()
        assert books["total_blocks"] in (None, self.pool.num_gpu_blocks - 1)
        for request in self.scheduler.running:
            if request.request_id in books["requests"]:
                held = [len(manager.req_to_blocks[request.request_id]) for manager in self.managers]
                told = books["requests"][request.request_id]
                tokens = told.pop("tokens")
                assert told == {"metok": request.request_id in plans, "blocks": held}
                # As the step began, which has computed at least one more.
                assert 0 <= tokens < request.num_computed_tokens

    def held(self) -> dict[str, list[int]]:
        """Blocks of each request by cache group, from the scheduler's books."""
        return {
            request_id: [len(manager.req_to_blocks[request_id]) for manager in self.managers]
            for request_id in self.scheduler.requests
        }

    def config_of(self, prompt: Any) -> METokConfig:
        options = prompt.get("mm_processor_kwargs", {}).get("metok", {})
        config: METokConfig = self.model.metok.for_request(options)
        return config

    def expected(
        self, prompt: Any, new_tokens: int = NEW_TOKENS, reference: LanguageModel | None = None
    ) -> Generated:
        """What the naive decoder answers to `prompt`, with these weights or another's."""
        reference = reference or self.reference
        assert self.boundaries is not None
        inputs = self.llm.llm_engine.renderer.render_cmpl([prompt], skip_mm_cache=True)[0]
        ids = list(inputs["prompt_token_ids"])
        config = self.config_of(prompt)
        stages = set(config.stages) if config.enabled else set()
        visual, videos = self._look(inputs, config)
        decode_keep = config.decode_keep
        if len(ids) > self.step_tokens:  # in chunks: no scores, so nothing is chosen
            stages, decode_keep = stages & {3}, 0.0
        embeds_ND = embed_prompt(reference, ids, visual)
        return generate(
            reference,
            embeds_ND,
            videos if config.enabled else [],
            self.boundaries,
            new_tokens,
            stages,
            decode_keep,
        )

    def _look(self, inputs: Any, config: METokConfig) -> tuple[dict[int, Tensor], list[Video]]:
        """Visual rows by their first position, and the videos among them."""
        visual: dict[int, Tensor] = {}
        videos = []
        items, places = inputs.get("mm_kwargs", {}), inputs.get("mm_placeholders", {})
        stage1 = self.model.stage1
        remembered, stage1.remembered = stage1.remembered, stage1.remembered.copy()
        for modality in items:
            for number, item in enumerate(items[modality]):
                fields = {name: field.data[None] for name, field in item.items() if name != FIELD}
                if FIELD in item:
                    fields[FIELD] = [item[FIELD].data]
                with torch.inference_mode():
                    (rows_MD,) = self.model.embed_multimodal(**fields)
                start = places[modality][number].offset
                assert places[modality][number].length == len(rows_MD)
                visual[start] = rows_MD.clone()
                if modality == "video" and config.enabled:
                    told = stage1.recall(inputs["metok"].videos[number].key)
                    length = len(inputs["prompt_token_ids"])
                    videos.append(
                        planned_video(start, told, config, len(rows_MD), length, self._grid)
                    )
        stage1.remembered = remembered
        return visual, videos

    @property
    def _grid(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)


def decided(
    engine: StagedEngine, parts: Parts, options: Mapping[str, Any], new_tokens: int = NEW_TOKENS
) -> tuple[Any, Generated]:
    """The first prompt of this kind that does not hang on last bits, with its right answer."""
    for seed in range(8):
        prompt = laid_out(parts, options, seed)
        expected = engine.expected(prompt, new_tokens)
        if is_decided(expected):
            return prompt, expected
    raise AssertionError(f"eight near ties in a row: {parts}, {options}")


def is_decided(expected: Generated) -> bool:
    """Whether no selection and no token hangs on the last bits of a sum."""
    best_S2 = expected.logprobs_SV.topk(2).values
    lead = float((best_S2[:, 0] - best_S2[:, 1]).min())
    return expected.margin > LEAST_MARGIN and lead > LEAST_LEAD


def _answer_of(output: Any, preemptions: int) -> Answer:
    completion = output.outputs[0]
    flat = completion.logprobs
    rows = []
    for first, end in zip(flat.start_indices, flat.end_indices, strict=True):
        row_V = torch.full((max(flat.token_ids[first:end]) + 1,), torch.nan)
        row_V[flat.token_ids[first:end]] = torch.tensor(flat.logprobs[first:end])
        rows.append(row_V)
    return Answer(
        list(completion.token_ids),
        torch.stack(rows),
        preemptions,
        len(output.prompt_token_ids),
        output.num_cached_tokens,
    )
