"""The `metok` object of a response: what METok did for one request, and what that saved.

Counts come from the plan, events from the worker that encoded the videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.engine.request_plans import step_tokens
from metok_vllm.engine.staging import is_staged
from metok_vllm.plan.accounting import decoder_prefill_flops, request_blocks, visual_tokens_by_stage
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.plan.request import RequestPlan, VideoPlan
from metok_vllm.server.chat.fallbacks import prefill_kind

WorkerEvents = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class EngineFacts:
    """What a report must know of the engine. `layout` is None where the decoder runs whole."""

    block_size: int
    step_tokens: int
    text_config: Any
    layout: StageLayout | None

    @classmethod
    def of(cls, vllm_config: Any, config: METokConfig | None) -> EngineFacts:
        """Of a running engine and the METok settings that it was started with."""
        text_config = vllm_config.model_config.hf_text_config
        layout = None
        if config is not None and is_staged(config):
            layout = StageLayout.of(config.pruning_layers, text_config.num_hidden_layers)
        block_size = vllm_config.cache_config.block_size
        return cls(block_size, step_tokens(vllm_config), text_config, layout)


def metok_report(
    plan: RequestPlan,
    prompt_plan: PromptPlan | None,
    workers: Sequence[WorkerEvents],
    *,
    engine: EngineFacts,
    prompt_tokens: int,
    fallback: str | None,
    unpruned: str | None,
) -> dict[str, Any]:
    """JSON-ready report, in which a number that is not finite is null.

    `prompt_plan` is what stages 2 and 3 did, None for nothing; `prompt_tokens` what the decoder
    was given; `workers` one per worker; `fallback` and `unpruned` as `fallbacks.py` names them.

    Visual tokens by stage are those its layers ran on, and under `decode` those they hold for
    decoding; one number where the decoder did not run in stages. KV blocks are those of all cache
    groups: of the dense prompt, after the prefill, and when the first generated token is decoded
    (which needs a slot of its own).
    """
    layout, size, encoded = engine.layout, engine.block_size, plan.encoded_tokens
    dense_prompt = prompt_tokens - encoded + plan.dense_tokens
    on = plan.name != "off"
    held = visual_tokens_by_stage(encoded, prompt_plan, decode=True)
    kind = prefill_kind(plan, prompt_tokens, engine.step_tokens)
    events = [
        event
        for index, video in enumerate(plan.videos)
        for event in video_events(index, video, worker_entry(workers, video.key))
    ]
    return {
        "preset": plan.name,
        "rule": plan.rule,
        "stages": list(plan.stages),
        "query_source": plan.query_source,
        "fallback": fallback,
        "unpruned": unpruned,
        # Whether a prompt that stages 2 and 3 leave alone was cut is the scheduler's secret.
        "prefill": None if unpruned == "prompt_logprobs" else kind,
        "pruning_layers": list(layout.boundaries) if layout is not None else None,
        "events": events,
        "visual_tokens": {
            "dense": plan.dense_tokens,
            "encoded": encoded,
            "stages": list(visual_tokens_by_stage(encoded, prompt_plan)) if on else [],
            "decode": list(held) if on else [],
        },
        "kv_blocks": {
            "dense": request_blocks(dense_prompt, size, layout, None),
            "prefill": request_blocks(prompt_tokens, size, layout, prompt_plan),
            "decode": request_blocks(prompt_tokens + 1, size, layout, prompt_plan),
        },
        "decoder_prefill_flops": {
            "dense": decoder_prefill_flops(engine.text_config, dense_prompt),
            "metok": decoder_prefill_flops(engine.text_config, prompt_tokens, layout, prompt_plan),
        },
    }


def video_events(
    index: int, video: VideoPlan, entry: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Events of one video in order of time, seconds from its start. No entry: no events.

    An event starts at its first frame and lasts until the next one starts, or the video ends.
    """
    if entry is None or len(entry["event_of_frame"]) != len(video.timestamps_s):
        return []
    event_of_frame = entry["event_of_frame"]
    relevance = entry["event_relevance"]
    starts: dict[int, float] = {}
    for event, time_s in zip(event_of_frame, video.timestamps_s, strict=True):
        starts.setdefault(int(event), float(time_s))
    order = sorted(starts, key=lambda event: starts[event])
    last = max(video.duration_s, video.timestamps_s[-1])
    ends = [starts[event] for event in order[1:]] + [float(last)]
    return [
        {
            "start_s": _finite(starts[event], 3),
            "end_s": _finite(end_s, 3),
            "relevance": _finite(relevance[event]),
            "key": bool(entry["event_key"][event]),
            "video": index,
        }
        for event, end_s in zip(order, ends, strict=True)
    ]


def _finite(value: Any, digits: int | None = None) -> float | None:
    """JSON has no word for infinity and NaN; strict clients refuse Python's."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return number if digits is None else round(number, digits)


def worker_entry(workers: Sequence[WorkerEvents], key: str) -> Mapping[str, Any] | None:
    """What the workers know about a video; with data parallelism only one of them does."""
    for worker in workers:
        entry = worker.get(key)
        if entry is not None:
            return entry
    return None
