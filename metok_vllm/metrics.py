"""METok's own Prometheus metrics. vLLM serves them beside its own at `/metrics`.

They live in the API server's process (in every one of them when there are several, through
prometheus_client's multiprocess directory). Names are a promise to dashboards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from metok_vllm.plan.accounting import visual_tokens_by_stage
from metok_vllm.plan.prompt import EVICT, PRUNE, PromptPlan
from metok_vllm.plan.request import RequestPlan

REQUESTS = Counter(
    "metok_requests",
    "Finished requests with a video, by METok preset (or the rule used instead).",
    ["preset"],
)
VISUAL_TOKENS = Counter(
    "metok_visual_tokens",
    "Visual tokens of finished requests, by point: dense (without METok), encoded (given to the "
    "decoder), stage1 (after stage 1), stage2 (run on by the layers after the second pruning "
    "layer), stage3 (held for decoding by the layers after the first one).",
    ["point"],
)
MEDIA_REJECTED = Counter("metok_media_rejected", "Refused or unreadable media.", ["reason"])
FALLBACKS = Counter("metok_fallbacks", "Requests METok served in a lesser mode.", ["reason"])
STAGE_SECONDS = Histogram(
    "metok_stage_seconds",
    "Time METok's stages took for one video: 1 is its encoding, vision tower included, 1_own what "
    "of that is neither a tower nor the projector, 2 scoring and selecting inside the decoder, "
    "prefill the decoder's step with all that is in it, shared out over the videos it selected of.",
    ["stage"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)
# Labels of the above by the names under which a worker tells them.
TOLD_SECONDS = {
    "1": "seconds",
    "1_own": "own_seconds",
    "2": "pruning_seconds",
    "prefill": "prefill_seconds",
}
VIDEO_DECODE_SECONDS = Histogram(
    "metok_video_decode_seconds",
    "Time to sample and decode one video.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)
FRAME_CACHE_HITS = Counter(
    "metok_frame_cache_hits",
    "Videos whose frames an earlier question about them left (METOK_MEDIA_FRAME_CACHE_BYTES).",
)
FEATURE_CACHE_HITS = Counter(
    "metok_feature_cache_hits",
    "Videos encoded from features that an earlier question about them left (feature_cache_bytes).",
)
FEATURE_CACHE_MISSES = Counter(
    "metok_feature_cache_misses",
    "Videos that went through the vision tower while features are kept (feature_cache_bytes).",
)
KV_BLOCKS_FREED = Counter(
    "metok_kv_blocks_freed", "KV blocks given back to the pool once a prefill was done."
)
KV_BLOCKS_HELD = Gauge(
    "metok_kv_blocks_held",
    "KV blocks that METok requests hold now, over all cache groups.",
    multiprocess_mode="mostrecent",  # every API server asks the same engines
)


def observe_video_read(decode_s: float, cached: bool) -> None:
    """One video was decoded in so many seconds, or its frames were still there."""
    if cached:
        FRAME_CACHE_HITS.inc()
    else:
        VIDEO_DECODE_SECONDS.observe(decode_s)


def observe_stage(stage: str | int, seconds: float) -> None:
    """One video spent `seconds` in a stage or a named part of one."""
    STAGE_SECONDS.labels(str(stage)).observe(seconds)


def observe_video(told: Mapping[str, Any], stages: Collection[int]) -> None:
    """What a worker has not told before of a video: its times, and whether it was seen anew.

    Encoding is stage 1's only where that is among the request's `stages`.
    """
    for stage, name in TOLD_SECONDS.items():
        seconds = told.get(name)
        if seconds is not None and (1 in stages or not stage.startswith("1")):
            observe_stage(stage, seconds)
    count_features(told.get("cached"))


def count_features(cached: bool | None) -> None:
    """One video was encoded, from kept features or not; None where none are kept."""
    if cached is not None:
        (FEATURE_CACHE_HITS if cached else FEATURE_CACHE_MISSES).inc()


def count_rejected(reason: str) -> None:
    """One image or video was refused or could not be read."""
    MEDIA_REJECTED.labels(reason).inc()


def count_fallback(reason: str) -> None:
    """METok served a request in a lesser mode than the one asked for."""
    FALLBACKS.labels(reason).inc()


def count_request(plan: RequestPlan, prompt_plan: PromptPlan | None = None) -> None:
    """A request with `plan` was answered; `prompt_plan` is what stages 2 and 3 did to it, if any.

    A point counts the requests that its stage was on for, with all their tokens where the stage
    could do nothing.
    """
    REQUESTS.labels(plan.name).inc()
    VISUAL_TOKENS.labels("dense").inc(plan.dense_tokens)
    VISUAL_TOKENS.labels("encoded").inc(plan.encoded_tokens)
    if 1 in plan.stages:
        VISUAL_TOKENS.labels("stage1").inc(plan.encoded_tokens)
    if PRUNE in plan.stages:
        ran = visual_tokens_by_stage(plan.encoded_tokens, prompt_plan)
        VISUAL_TOKENS.labels("stage2").inc(ran[2] if prompt_plan is not None else ran[0])
    if EVICT in plan.stages:
        held = visual_tokens_by_stage(plan.encoded_tokens, prompt_plan, decode=True)
        VISUAL_TOKENS.labels("stage3").inc(held[1] if prompt_plan is not None else held[0])


def set_blocks_held(blocks: int) -> None:
    """METok requests hold so many blocks now."""
    KV_BLOCKS_HELD.set(blocks)


def count_blocks_freed(blocks: int) -> None:
    """So many more blocks were given back."""
    KV_BLOCKS_FREED.inc(blocks)
