"""METok's own Prometheus metrics. vLLM serves them beside its own at `/metrics`.

They live in the API server's process (in every one of them when there are several, through
prometheus_client's multiprocess directory). Names are a promise to dashboards.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from metok_vllm.plan import RequestPlan

REQUESTS = Counter("metok_requests", "Finished requests with a video, by METok preset.", ["preset"])
VISUAL_TOKENS = Counter(
    "metok_visual_tokens",
    "Visual tokens of finished requests, by point: without METok, after stage 1, to the decoder.",
    ["point"],
)
MEDIA_REJECTED = Counter("metok_media_rejected", "Refused or unreadable media.", ["reason"])
FALLBACKS = Counter("metok_fallbacks", "Requests METok served in a lesser mode.", ["reason"])
STAGE_SECONDS = Histogram(
    "metok_stage_seconds",
    "Time METok's stages took for one video; stage 1 is its encoding, vision tower included.",
    ["stage"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)
VIDEO_DECODE_SECONDS = Histogram(
    "metok_video_decode_seconds",
    "Time to sample and decode one video.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)


def observe_decode(seconds: float) -> None:
    """One video was decoded in `seconds`."""
    VIDEO_DECODE_SECONDS.observe(seconds)


def observe_stage(stage: int, seconds: float) -> None:
    """One video spent `seconds` in a stage."""
    STAGE_SECONDS.labels(str(stage)).observe(seconds)


def count_rejected(reason: str) -> None:
    """One image or video was refused or could not be read."""
    MEDIA_REJECTED.labels(reason).inc()


def count_fallback(reason: str) -> None:
    """METok served a request in a lesser mode than the one asked for."""
    FALLBACKS.labels(reason).inc()


def count_request(plan: RequestPlan) -> None:
    """A request with `plan` was answered."""
    preset = plan.preset if plan.stages else "off"
    REQUESTS.labels(preset).inc()
    VISUAL_TOKENS.labels("dense").inc(plan.dense_tokens)
    VISUAL_TOKENS.labels("encoded").inc(plan.encoded_tokens)
    if 1 in plan.stages:
        VISUAL_TOKENS.labels("stage1").inc(plan.encoded_tokens)
