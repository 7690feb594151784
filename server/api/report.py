"""The `metok` object of a response: what METok did for one request, and what that saved.

Counts come from the plan, events from the worker that encoded the videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metok_vllm.accounting import blocks_for, decoder_prefill_flops
from metok_vllm.plan import RequestPlan, VideoPlan

WorkerEvents = Mapping[str, Mapping[str, Any] | None]


def metok_report(
    plan: RequestPlan,
    workers: Sequence[WorkerEvents],
    *,
    fallback: str | None,
    prompt_tokens: int,
    block_size: int,
    text_config: Any,
) -> dict[str, Any]:
    """JSON-ready report, in which a number that is not finite is null.

    `prompt_tokens` is what the decoder was given; `workers` one per worker; `fallback` why frames
    were ranked without the question (`no_towers`, `no_query`), or None.

    KV blocks are those of one cache group: held by the dense prompt, after the prefill, and when
    the first generated token is decoded (which needs a slot of its own).
    """
    dense_prompt = prompt_tokens - plan.encoded_tokens + plan.dense_tokens
    events = [
        event
        for index, video in enumerate(plan.videos)
        for event in video_events(index, video, worker_entry(workers, video.key))
    ]
    return {
        "preset": plan.preset if plan.stages else "off",
        "stages": list(plan.stages),
        "query_source": plan.query_source,
        "fallback": fallback,
        "events": events,
        "visual_tokens": {
            "dense": plan.dense_tokens,
            "encoded": plan.encoded_tokens,
            "stages": [plan.encoded_tokens] if 1 in plan.stages else [],
        },
        "kv_blocks": {
            "dense": blocks_for(dense_prompt, block_size),
            "prefill": blocks_for(prompt_tokens, block_size),
            "decode": blocks_for(prompt_tokens + 1, block_size),
        },
        "decoder_prefill_flops": {
            "dense": decoder_prefill_flops(text_config, dense_prompt),
            "metok": decoder_prefill_flops(text_config, prompt_tokens),
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
