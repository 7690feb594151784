from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from metok_vllm.plan import RequestPlan, VideoPlan
from metok_vllm.server.api.report import metok_report, video_events

TEXT = SimpleNamespace(
    num_hidden_layers=2,
    hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=16,
)


def plan_of(*videos: VideoPlan, stages: tuple[int, ...] = (1,)) -> RequestPlan:
    return RequestPlan("balanced", stages, "user_turn", videos)


def clip(key: str = "a", dense: int = 100, encoded: int = 40, **changes: Any) -> VideoPlan:
    values = {"num_frames": 4, "timestamps_s": (0.0, 1.5, 3.0, 4.5), "duration_s": 6.0}
    return VideoPlan(key=key, dense_tokens=dense, encoded_tokens=encoded, **{**values, **changes})


ENTRY = {
    "event_of_frame": [0, 0, 2, 2],
    "event_relevance": [0.25, float("-inf"), 0.5],
    "event_key": [False, False, True],
}


def report(plan: RequestPlan, *workers: Any, prompt_tokens: int = 64) -> dict[str, Any]:
    return metok_report(
        plan,
        workers,
        fallback="no_towers",
        prompt_tokens=prompt_tokens,
        block_size=16,
        text_config=TEXT,
    )


def test_events_last_until_the_next_one_or_the_end() -> None:
    assert video_events(3, clip(), ENTRY) == [
        {"start_s": 0.0, "end_s": 3.0, "relevance": 0.25, "key": False, "video": 3},
        {"start_s": 3.0, "end_s": 6.0, "relevance": 0.5, "key": True, "video": 3},
    ]


def test_a_video_without_a_duration_ends_at_its_last_frame() -> None:
    assert video_events(0, clip(duration_s=0.0), ENTRY)[-1]["end_s"] == 4.5


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_does_not_know_are_null(bad: float) -> None:
    video = clip(timestamps_s=(0.0, 1.5, bad, bad), duration_s=bad)
    entry = {**ENTRY, "event_relevance": [bad, 0.0, 0.5]}
    content = report(plan_of(video), {"a": entry})
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert None in (event["relevance"] for event in content["events"])
    assert None in (event["end_s"] for event in content["events"])


@pytest.mark.parametrize("entry", [None, {**ENTRY, "event_of_frame": [0, 0]}])
def test_no_events_rather_than_an_error(entry: dict[str, Any] | None) -> None:
    assert video_events(0, clip(), entry) == []


def test_counts() -> None:
    # 64 prompt tokens hold 40 visual ones; the dense prompt would have 124.
    content = report(plan_of(clip()), {"a": ENTRY})
    assert content["visual_tokens"] == {"dense": 100, "encoded": 40, "stages": [40]}
    assert content["kv_blocks"] == {"dense": 8, "prefill": 4, "decode": 5}
    assert (content["preset"], content["stages"], content["query_source"]) == (
        "balanced",
        [1],
        "user_turn",
    )
    assert content["fallback"] == "no_towers"
    per_layer = 2 * (64 * 8 * (2 * 8 + 2 * 4) + 2 * 64 * 64 * 8 + 3 * 64 * 8 * 16)
    assert content["decoder_prefill_flops"]["metok"] == 2 * per_layer
    assert content["decoder_prefill_flops"]["dense"] > 2 * content["decoder_prefill_flops"]["metok"]


def test_several_videos_and_workers() -> None:
    plan = plan_of(clip("a"), clip("b"))
    content = report(plan, {"a": None, "b": ENTRY}, {"a": ENTRY}, prompt_tokens=90)
    assert [event["video"] for event in content["events"]] == [0, 0, 1, 1]
    assert content["visual_tokens"]["dense"] == 200


def test_a_dense_request_saves_nothing() -> None:
    content = report(plan_of(clip(encoded=100), stages=()), prompt_tokens=124)
    assert (content["preset"], content["stages"], content["events"]) == ("off", [], [])
    assert content["visual_tokens"] == {"dense": 100, "encoded": 100, "stages": []}
    flops = content["decoder_prefill_flops"]
    assert flops["dense"] == flops["metok"]
    assert content["kv_blocks"] == {"dense": 8, "prefill": 8, "decode": 8}
