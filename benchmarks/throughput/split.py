"""Where the time of a mean request goes, from the client's clock and the server's histograms.

    client, end to end
    |- front              arrival at the server until the engine core has it (a difference)
    |  |- video_decoding       where METok's reader decodes; else part of fetch_preprocessing
    |  |- fetch_preprocessing  fetching, base64, the processor, hashing, the way to the core, which
    |  |                       takes requests in between two steps: under load most of it is that
    |- queue
    |- prefill            scheduled until the first token, with the steps of others in its batch
    |  |- vision_stage1        vision tower and stage 1 of METok's videos; else part of prefill
    |  |- decoder_prefill      the rest of the prefill
    |- decode             first token until the last, with the steps of others in its batch
    |- unexplained        the client's time less all of these: HTTP, event loops, the way back

Seconds are means over the requests that the server counted. vLLM has no clock of its own between
arrival and queue: `front` is its time to the first token less queue and prefill.
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
    """Seconds of a mean request by part; None where the server has no clock for a part.

    `explained` is the share of the client's end-to-end time that a clock accounts for.
    `requests` are those the server counted: more than were sent means that others used it too.
    `of_prefill` are METok's own parts as shares of encoding and decoder prefill: "stage1" without
    towers and projector, "stage2" scoring and selecting.
    """

    end_to_end_s: float
    parts_s: dict[str, float | None]
    explained: float
    requests: int
    of_prefill: dict[str, float]


def time_split(outcomes: Sequence[Outcome], scrapes: Scrapes) -> TimeSplit | None:
    """The split of a run; None where the server keeps no clocks or nothing was answered."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    counted = scrapes.rise(FINISHED)
    ttft_s = _mean(scrapes, TTFT)
    queue_s, prefill_s, decode_s = (_mean(scrapes, name) for name in (QUEUE, PREFILL, DECODE))
    if not answered or not counted or ttft_s is None:
        return None
    if queue_s is None or prefill_s is None or decode_s is None:
        return None
    client_s = sum(outcome.ended_s - outcome.started_s for outcome in answered) / len(answered)
    # Videos are fewer than requests, or more: what they took is shared out over the requests.
    video_s = _shared_out(scrapes, VIDEO, counted)
    stage_s = _shared_out(scrapes, STAGE, counted, stage="1")
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
    # Names may claim too much as well: what is missing and what is too much count alike.
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


def _shared_out(scrapes: Scrapes, name: str, requests: float, **labels: str) -> float | None:
    """Mean seconds a request of what is observed once a video; None where nothing was observed."""
    seconds, count = scrapes.rise(f"{name}_sum", **labels), scrapes.rise(f"{name}_count", **labels)
    return seconds / requests if seconds is not None and count else None
