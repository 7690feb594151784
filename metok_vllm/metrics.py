"""METok's own Prometheus metrics. vLLM serves them beside its own at `/metrics`.

They are counted in the API server's process; several of them share prometheus_client's multiprocess
directory. Dashboards depend on the names.
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
FALLBACKS = Counter(
    "metok_fallbacks",
    "Requests that METok served with less than their settings ask for.",
    ["reason"],
)
STAGE_SECONDS = Histogram(
    "metok_stage_seconds",
    "Seconds per video, by stage. 1: encoding, vision tower included. 1_own: the part of 1 that is "
    "neither a tower nor the projector. 2: scoring and selecting in the decoder. prefill: this "
    "video's share of its prefill step's time.",
    ["stage"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)
# Label of STAGE_SECONDS -> key in a worker's report.
REPORTED_SECONDS = {
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
    "Videos whose frames came from the frame cache (METOK_MEDIA_FRAME_CACHE_BYTES).",
)
FEATURE_CACHE_HITS = Counter(
    "metok_feature_cache_hits",
    "Videos whose features came from the feature cache (feature_cache_bytes).",
)
FEATURE_CACHE_MISSES = Counter(
    "metok_feature_cache_misses",
    "Videos that passed the vision tower although the feature cache is on (feature_cache_bytes).",
)
PREFIX_HITS = Counter(
    "metok_prefix_hits",
    "Finished requests with a video whose prompt was read in part from a prefix cache.",
)
PREFIX_TOKENS = Counter(
    "metok_prefix_tokens", "Prompt tokens that such requests read from a prefix cache."
)
KV_BLOCKS_FREED = Counter(
    "metok_kv_blocks_freed", "KV blocks that stage 3 returned to the pool after a prefill."
)
KV_BLOCKS_HELD = Gauge(
    "metok_kv_blocks_held",
    "KV blocks that METok requests hold now, over all cache groups.",
    multiprocess_mode="mostrecent",  # every API server asks the same engines
)

PREFIX_RECORDS = Gauge(
    "metok_prefix_records",
    "Prompts whose KV blocks lie in the pool for a later turn, until others need them.",
    multiprocess_mode="mostrecent",  # every API server asks the same engines
)


def observe_video_read(decode_s: float, cached: bool) -> None:
    """One video was decoded in `decode_s` seconds, or its frames were cached."""
    if cached:
        FRAME_CACHE_HITS.inc()
    else:
        VIDEO_DECODE_SECONDS.observe(decode_s)


def observe_stage(stage: str | int, seconds: float) -> None:
    """One video took `seconds` in a stage or a named part of one."""
    STAGE_SECONDS.labels(str(stage)).observe(seconds)


def observe_video(report: Mapping[str, Any], stages: Collection[int]) -> None:
    """Times of one video from a worker's report, and whether its features were cached.

    Encoding counts as stage 1 only if that is among the request's `stages`.
    """
    for stage, name in REPORTED_SECONDS.items():
        seconds = report.get(name)
        if seconds is not None and (1 in stages or not stage.startswith("1")):
            observe_stage(stage, seconds)
    count_features(report.get("cached"))


def count_features(cached: bool | None) -> None:
    """One video was encoded, with or without cached features; None without a cache."""
    if cached is not None:
        (FEATURE_CACHE_HITS if cached else FEATURE_CACHE_MISSES).inc()


def count_rejected(reason: str) -> None:
    """One image or video was refused or could not be read."""
    MEDIA_REJECTED.labels(reason).inc()


def count_fallback(reason: str) -> None:
    """METok served a request with less than its settings ask for."""
    FALLBACKS.labels(reason).inc()


def count_request(
    plan: RequestPlan, prompt_plan: PromptPlan | None = None, reused_tokens: int = 0
) -> None:
    """A request was answered; `prompt_plan` is what stages 2 and 3 did, None for nothing.

    A point counts the requests with its stage on, with all their tokens if it pruned none.
    """
    REQUESTS.labels(plan.name).inc()
    if reused_tokens:
        PREFIX_HITS.inc()
        PREFIX_TOKENS.inc(reused_tokens)
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
    """METok requests hold `blocks` blocks now."""
    KV_BLOCKS_HELD.set(blocks)


def set_prefix_records(records: int) -> None:
    """A later prompt may go on from `records` prompts now."""
    PREFIX_RECORDS.set(records)


def count_blocks_freed(blocks: int) -> None:
    """Stage 3 returned `blocks` more blocks."""
    KV_BLOCKS_FREED.inc(blocks)
