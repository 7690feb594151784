"""The parts of a mean request's time, from the client's clock and the server's histograms.

    client, end to end
    |- front              from the arrival at the server to the engine core (a difference)
    |  |- video_decoding       decoding by METok's reader; else part of fetch_preprocessing
    |  |- fetch_preprocessing  fetching, base64, the processor, hashing, and the wait for the core,
    |  |                       which accepts requests between two steps
    |- queue
    |- prefill            from scheduling to the first token, with other requests in its batch
    |  |- vision_stage1        vision tower and stage 1 of METok's videos; else part of prefill
    |  |- decoder_prefill      the rest of the prefill
    |- decode             from the first token to the last, with other requests in its batch
    |- unexplained        the rest of the client's time: HTTP, event loops, the way back

Seconds are means over the requests that the server counted. vLLM has no clock between arrival and
queue, so `front` is its TTFT minus queue and prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.client.scrape import FINISHED, Scrapes
from metok_vllm.benchmarks.client.stream import Outcome

PARTS = (
    "video_decoding",
    "fetch_preprocessing",
    "queue",
    "vision_stage1",
    "decoder_prefill",
    "decode",
    "unexplained",
)
TTFT = "vllm:time_to_first_token_seconds"
QUEUE = "vllm:request_queue_time_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
VIDEO = "metok_video_decode_seconds"
STAGE = "metok_stage_seconds"


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of a mean request by part; None if the server does not measure a part.

    `explained` is the share of the client's end-to-end time that the parts account for. `requests`
    is the server's count; more than were sent means other clients. `of_prefill` are METok's own
    shares of encoding and decoder prefill: "stage1" without towers and projector, "stage2" scoring
    and selecting.
    """

    end_to_end_s: float
    parts_s: dict[str, float | None]
    explained: float
    requests: int
    of_prefill: dict[str, float]


def time_split(outcomes: Sequence[Outcome], scrapes: Scrapes) -> TimeSplit | None:
    """The split of a run; None without the server's histograms or without an answer."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    counted = scrapes.rise(FINISHED)
    ttft_s = _mean(scrapes, TTFT)
    queue_s, prefill_s, decode_s = (_mean(scrapes, name) for name in (QUEUE, PREFILL, DECODE))
    if not answered or not counted or ttft_s is None:
        return None
    if queue_s is None or prefill_s is None or decode_s is None:
        return None
    client_s = sum(outcome.ended_s - outcome.started_s for outcome in answered) / len(answered)
    # Observed once a video, of which there may be more or fewer than requests.
    video_s = _per_request(scrapes, VIDEO, counted)
    stage_s = _per_request(scrapes, STAGE, counted, stage="1")
    front_s = max(0.0, ttft_s - queue_s - prefill_s)
    parts: dict[str, float | None] = {
        "video_decoding": video_s,
        "fetch_preprocessing": max(0.0, front_s - (video_s or 0.0)),
        "queue": queue_s,
        "vision_stage1": stage_s,
        "decoder_prefill": max(0.0, prefill_s - (stage_s or 0.0)),
        "decode": decode_s,
    }
    named_s = sum(seconds for seconds in parts.values() if seconds is not None)
    parts["unexplained"] = client_s - named_s
    # The parts may also add up to more than the client's time.
    explained = 1 - abs(client_s - named_s) / client_s
    return TimeSplit(client_s, parts, explained, round(counted), _of_prefill(scrapes))


def _mean(scrapes: Scrapes, name: str) -> float | None:
    seconds, count = scrapes.rise(f"{name}_sum"), scrapes.rise(f"{name}_count")
    return seconds / count if seconds is not None and count else None


def _of_prefill(scrapes: Scrapes) -> dict[str, float]:
    encoding, own, pruning, decoder = (
        scrapes.rise(f"{STAGE}_sum", stage=part) for part in ("1", "1_own", "2", "prefill")
    )
    if not decoder:
        return {}
    prefill_s = decoder + (encoding or 0.0)
    return {"stage1": (own or 0.0) / prefill_s, "stage2": (pruning or 0.0) / prefill_s}


def _per_request(scrapes: Scrapes, name: str, requests: float, **labels: str) -> float | None:
    """Mean seconds a request of a histogram; None without observations."""
    seconds, count = scrapes.rise(f"{name}_sum", **labels), scrapes.rise(f"{name}_count", **labels)
    return seconds / requests if seconds is not None and count else None
