"""The `metok` object of a response: what METok did for one request, and what that saved.

Counts come from the request's plan, events from the worker that encoded its videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.engine.staging import is_staged
from metok_vllm.models.query import NO_QUESTION, NONE
from metok_vllm.plan.accounting import decoder_prefill_flops, request_blocks, visual_tokens_by_stage
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PRUNE, PromptPlan, Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan

WorkerEvents = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class EngineFacts:
    """Facts of the engine for a report. `layout` is None if the decoder does not run in stages."""

    block_size: int
    text_config: Any
    layout: StageLayout | None

    @classmethod
    def of(cls, vllm_config: Any, config: METokConfig | None) -> EngineFacts:
        """The facts of an engine that was started with the METok settings `config`."""
        text_config = vllm_config.model_config.hf_text_config
        layout = None
        if config is not None and is_staged(config):
            layout = StageLayout.of(config.pruning_layers, text_config.num_hidden_layers)
        block_size = vllm_config.cache_config.block_size
        return cls(block_size, text_config, layout)


def metok_report(
    plan: RequestPlan,
    prompt_plan: PromptPlan | None,
    workers: Sequence[WorkerEvents],
    *,
    engine: EngineFacts,
    prompt_tokens: int,
    fallback: str | None,
    unpruned: str | None,
    of_images: Sequence[bool] = (),
    reused_tokens: int = 0,
) -> dict[str, Any]:
    """JSON-ready report, with null for a number that is not finite.

    `prompt_plan` is what stages 2 and 3 did (None: nothing), `prompt_tokens` the decoder's input,
    `workers` has the events of each worker. `fallback` and `unpruned` are the reasons below.
    `of_images` marks the videos that were sent as runs of images, whose times are unknown.
    `reused_tokens` of the prompt were read from a prefix cache; `ran` are FLOPs without them.

    `stages` counts the visual tokens each stage's layers ran on, `decode` those they keep for
    decoding; without stages each is one number. `kv_blocks` sums all cache groups: for the dense
    prompt, after the prefill, and for the first token that is generated after stage 3 freed blocks
    (`evict_after`).
    """
    layout, size, encoded = engine.layout, engine.block_size, plan.encoded_tokens
    dense_prompt = prompt_tokens - encoded + plan.dense_tokens
    on = plan.name != "off"
    prefill_tokens = visual_tokens_by_stage(encoded, prompt_plan)
    decoding = prompt_tokens if prompt_plan is None else prompt_plan.decode_from
    decode_tokens = visual_tokens_by_stage(encoded, prompt_plan, decode=True)
    events = [
        event
        for index, video in enumerate(plan.videos)
        for event in video_events(
            index, video, worker_entry(workers, video.key), any(of_images[index : index + 1])
        )
    ]
    return {
        "applied": on,
        "reason": None if on else "METok is off for this request",
        "source": source_of(of_images),
        "preset": plan.name,
        "rule": plan.rule,
        "stages": list(plan.stages),
        "query_source": plan.query_source,
        "focus": plan.focus,
        "fallback": fallback,
        "unpruned": unpruned,
        "pruning_layers": list(layout.boundaries) if layout is not None else None,
        "events": events,
        "visual_tokens": {
            "dense": plan.dense_tokens,
            "encoded": encoded,
            "stages": list(prefill_tokens) if on else [],
            "decode": list(decode_tokens) if on else [],
        },
        "kv_blocks": {
            "dense": request_blocks(dense_prompt, size, layout, None),
            "prefill": request_blocks(prompt_tokens, size, layout, prompt_plan),
            "decode": request_blocks(decoding + 1, size, layout, prompt_plan),
        },
        "evict_after": 0 if prompt_plan is None else prompt_plan.evict_after,
        "decoder_prefill_flops": {
            "dense": decoder_prefill_flops(engine.text_config, dense_prompt),
            "metok": decoder_prefill_flops(engine.text_config, prompt_tokens, layout, prompt_plan),
            "ran": decoder_prefill_flops(
                engine.text_config, prompt_tokens, layout, prompt_plan, reused_tokens
            ),
        },
        "reused_tokens": reused_tokens,
    }


def not_applied(reason: str) -> dict[str, Any]:
    """The report of a request whose METok settings have nothing to work on."""
    return {"applied": False, "reason": reason}


def source_of(of_images: Sequence[bool]) -> str:
    """How the videos of a request were sent: as `video`, as `images` in a row, or as `both`."""
    if not any(of_images):
        return "video"
    return "images" if all(of_images) else "both"


def video_events(
    index: int, video: VideoPlan, entry: Mapping[str, Any] | None, in_frames: bool = False
) -> list[dict[str, Any]]:
    """Events of one video in order of time, in seconds from its start; empty without an entry.

    An event starts at its first frame and ends where the next one starts, or with the video. With
    `in_frames` its start and end are numbers of frames, because the frames have no times.
    """
    if entry is None or len(entry["event_of_frame"]) != len(video.timestamps_s):
        return []
    event_of_frame = entry["event_of_frame"]
    relevance = entry["event_relevance"]
    times: Sequence[float] = range(video.num_frames) if in_frames else video.timestamps_s
    last = video.num_frames if in_frames else max(video.duration_s, times[-1])
    starts: dict[int, float] = {}
    for event, time in zip(event_of_frame, times, strict=True):
        starts.setdefault(int(event), time)
    order = sorted(starts, key=lambda event: starts[event])
    ends = [starts[event] for event in order[1:]] + [last]
    return [
        {
            **_span(starts[event], end, in_frames),
            "relevance": _finite(relevance[event]),
            "key": bool(entry["event_key"][event]),
            "video": index,
        }
        for event, end in zip(order, ends, strict=True)
    ]


def _span(start: float, end: float, in_frames: bool) -> dict[str, float | None]:
    if in_frames:
        return {"start_frame": start, "end_frame": end}
    return {"start_s": _finite(start, 3), "end_s": _finite(end, 3)}


def _finite(value: Any, digits: int | None = None) -> float | None:
    """The number rounded, None for infinity and NaN, which JSON does not have."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return number if digits is None else round(number, digits)


def worker_entry(workers: Sequence[WorkerEvents], key: str) -> Mapping[str, Any] | None:
    """A video's entry; with data parallelism only one worker has it."""
    return next((worker[key] for worker in workers if worker.get(key) is not None), None)


def uses_events(plan: RequestPlan) -> bool:
    """Whether a video's events set its frames' strides or its layers' token counts."""
    return 1 in plan.stages or PRUNE in plan.stages


def fallback_reason(plan: RequestPlan, config: METokConfig | None) -> str | None:
    """Why frames were ranked without the question; None if they were not."""
    if config is None or not uses_events(plan):
        return None
    if config.alignment_model is None or config.alignment_mode == "none":
        return "no_towers"
    return "no_query" if plan.query_source in (NONE, NO_QUESTION) else None


def unpruned_reason(plan: RequestPlan, excluded: str | None) -> str | None:
    """Why stages 2 and 3 did less than the request's settings say; None if they did not.

    `excluded` is the reason for which the request was excluded from them, if it was.
    """
    if excluded == "beam_search":
        return excluded  # its plan has no stages 2 and 3
    return excluded if _pruning(plan) is not None else None


def _pruning(plan: RequestPlan) -> Pruning | None:
    pruning = next((video.pruning for video in plan.videos if video.pruning is not None), None)
    return pruning if pruning is not None and pruning.stages else None
