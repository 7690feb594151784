"""The `metok` object of a response: counts, events, and the reasons for doing less."""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan
from metok_vllm.server.chat.report import (
    EngineFacts,
    fallback_reason,
    metok_report,
    unpruned_reason,
    video_events,
)

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


def report(
    plan: RequestPlan, *workers: Any, prompt_tokens: int = 64, of_images: tuple[bool, ...] = ()
) -> dict[str, Any]:
    return metok_report(
        plan,
        None,
        workers,
        engine=EngineFacts(16, TEXT, None),
        prompt_tokens=prompt_tokens,
        fallback="no_towers",
        unpruned=None,
        of_images=of_images,
    )


def test_events_last_until_the_next_one_or_the_end() -> None:
    assert video_events(3, clip(), ENTRY) == [
        {"start_s": 0.0, "end_s": 3.0, "relevance": 0.25, "key": False, "video": 3},
        {"start_s": 3.0, "end_s": 6.0, "relevance": 0.5, "key": True, "video": 3},
    ]


def test_a_video_without_a_duration_ends_at_its_last_frame() -> None:
    assert video_events(0, clip(duration_s=0.0), ENTRY)[-1]["end_s"] == 4.5


def test_events_of_images_are_counted_in_frames() -> None:
    plan = plan_of(clip("a"), clip("b"))
    content = report(plan, {"a": ENTRY, "b": ENTRY}, of_images=(False, True))
    assert content["source"] == "both"
    assert [event["video"] for event in content["events"]] == [0, 0, 1, 1]
    assert "start_frame" not in content["events"][0]
    first, last = content["events"][2:]
    assert (first["start_frame"], first["end_frame"]) == (0, 2)
    assert (last["start_frame"], last["end_frame"]) == (2, 4)
    assert "start_s" not in first
    assert report(plan_of(clip()), {"a": ENTRY}, of_images=(True,))["source"] == "images"
    assert report(plan_of(clip()), {"a": ENTRY})["source"] == "video"


def test_the_report_says_whether_metok_ran() -> None:
    content = report(plan_of(clip()), {"a": ENTRY})
    assert (content["applied"], content["reason"]) == (True, None)
    content = report(plan_of(clip(encoded=100), stages=()), prompt_tokens=124)
    assert (content["applied"], content["reason"]) == (False, "METok is off for this request")


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_does_not_know_are_null(bad: float) -> None:
    video = clip(timestamps_s=(0.0, 1.5, bad, bad), duration_s=bad)
    entry = {**ENTRY, "event_relevance": [bad, 0.0, 0.5]}
    content = report(plan_of(video), {"a": entry})
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert None in (event["relevance"] for event in content["events"])
    assert None in (event["end_s"] for event in content["events"])


@pytest.mark.parametrize("entry", [None, {**ENTRY, "event_of_frame": [0, 0]}])
def test_an_unusable_entry_gives_no_events(entry: dict[str, Any] | None) -> None:
    assert video_events(0, clip(), entry) == []


def test_counts() -> None:
    # 64 prompt tokens hold 40 visual ones; the dense prompt would have 124.
    content = report(plan_of(clip()), {"a": ENTRY})
    assert content["visual_tokens"] == {
        "dense": 100,
        "encoded": 40,
        "stages": [40],
        "decode": [40],
    }
    assert (content["unpruned"], content["pruning_layers"]) == (None, None)
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
    tokens = content["visual_tokens"]
    assert tokens == {"dense": 100, "encoded": 100, "stages": [], "decode": []}
    flops = content["decoder_prefill_flops"]
    assert flops["dense"] == flops["metok"]
    assert content["kv_blocks"] == {"dense": 8, "prefill": 8, "decode": 8}


# Stages of 2, 4, 2 and 2 layers, which vLLM puts into groups of 2: 1, 2, 1 and 1.
LAYOUT = StageLayout((2, 6, 8), 10)


def staged(stages: tuple[int, ...] = (1, 2, 3), decode_keep: float = 0.0) -> RequestPlan:
    config = METokConfig(stages=stages, decode_keep=decode_keep)
    pruning = Pruning.of(config, Fraction(3, 5)) if stages else None
    return plan_of(clip(start=4, pruning=pruning), stages=stages)


def staged_report(plan: RequestPlan, *, unpruned: str | None = None) -> dict[str, Any]:
    text = SimpleNamespace(**{**vars(TEXT), "num_hidden_layers": 10})
    prompt_plan: PromptPlan | None = plan.prompt_plan(64) if not unpruned else None
    return metok_report(
        plan,
        prompt_plan,
        [],
        engine=EngineFacts(16, text, LAYOUT),
        prompt_tokens=64,
        fallback=None,
        unpruned=unpruned,
    )


def layers(count: int, rows: int) -> int:
    """FLOPs of layers of width 8, with one KV head of 4 and an MLP of 16."""
    return count * 2 * (rows * 8 * (2 * 8 + 2 * 4 + 3 * 16) + 2 * rows**2 * 8)


def test_a_prompt_that_was_pruned_and_evicted() -> None:
    """40 of 64 prompt tokens are visual, 24 of them in key events; then 25, 14 and none."""
    content = staged_report(staged())
    assert content["pruning_layers"] == [2, 6, 8]
    assert content["visual_tokens"]["stages"] == [40, 25, 14, 0]
    assert content["visual_tokens"]["decode"] == [40, 0, 0, 0]
    blocks = content["kv_blocks"]
    assert blocks["dense"] == 5 * 8  # 124 tokens in every group
    assert blocks["prefill"] == 4 + 2 * 4 + 3 + 2  # 64, 49, 38 and 24 tokens
    assert blocks["decode"] == 5 + 2 * 2 + 2 + 2  # 65, and 25 in all later groups
    flops = content["decoder_prefill_flops"]
    assert flops["metok"] == layers(2, 64) + layers(4, 49) + layers(2, 38) + layers(2, 24)
    assert flops["dense"] == layers(10, 124)


def test_what_decoding_keeps() -> None:
    content = staged_report(staged(decode_keep=0.25))
    assert content["visual_tokens"]["decode"] == [40, 7, 4, 0]
    assert content["kv_blocks"]["decode"] == 5 + 2 * 2 + 2 + 2  # 65, 32, 29 and 25 tokens


def test_prompt_logprobs_leave_the_prompt_whole() -> None:
    content = staged_report(staged(), unpruned="prompt_logprobs")
    assert content["unpruned"] == "prompt_logprobs"
    assert content["visual_tokens"]["stages"] == [40]
    assert content["kv_blocks"]["decode"] == 5 * 5
    assert content["decoder_prefill_flops"]["metok"] == layers(10, 64)


def test_a_dense_request_to_an_engine_with_stages_holds_every_group() -> None:
    plan = plan_of(clip(encoded=40, dense=40), stages=())
    content = staged_report(plan)
    assert content["kv_blocks"] == {"dense": 20, "prefill": 20, "decode": 25}
    assert content["visual_tokens"]["stages"] == content["visual_tokens"]["decode"] == []


def facts_of(config: METokConfig | None) -> EngineFacts:
    vllm_config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=32),
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=28)),
    )
    return EngineFacts.of(vllm_config, config)


def test_the_facts_of_an_engine() -> None:
    facts = facts_of(METokConfig(pruning_layers=(4, 12, 20)))
    assert facts.block_size == 32
    assert facts.layout == StageLayout((4, 12, 20), 28)
    assert facts_of(METokConfig(stages=(1,))).layout is None
    assert facts_of(None).layout is None


VIDEO = VideoPlan("a", 2, (0.0, 1.0), 2.0, 100, 40)


@pytest.mark.parametrize(
    ("source", "stages", "config", "reason"),
    [
        ("user_turn", (1,), METokConfig(alignment_model="towers"), None),
        ("none", (1,), METokConfig(alignment_model="towers"), "no_query"),
        ("user_turn", (1,), METokConfig(), "no_towers"),
        ("user_turn", (1,), METokConfig(alignment_model="t", alignment_mode="none"), "no_towers"),
        ("none", (), METokConfig(), None),
        ("none", (2, 3), METokConfig(alignment_model="towers"), "no_query"),
        ("user_turn", (2,), METokConfig(), "no_towers"),
        ("user_turn", (3,), METokConfig(), None),
        ("none", (1,), None, None),
    ],
)
def test_fallbacks_are_named(
    source: str, stages: tuple[int, ...], config: METokConfig | None, reason: str | None
) -> None:
    plan = RequestPlan("balanced", stages, source, (VIDEO,))
    assert fallback_reason(plan, config) == reason


def plan_with(stages: tuple[int, ...], decode_keep: float = 0.0) -> RequestPlan:
    config = METokConfig(stages=stages, decode_keep=decode_keep)
    pruning = Pruning.of(config, Fraction(3, 5)) if stages else None
    video = VideoPlan("a", 2, (0.0, 1.0), 2.0, 100, 40, 4, pruning)
    return RequestPlan("balanced", stages, "user_turn", (video,))


@pytest.mark.parametrize(
    ("stages", "excluded", "reason"),
    [
        ((1, 2, 3), None, None),
        ((2,), None, None),
        ((1, 2, 3), "prompt_logprobs", "prompt_logprobs"),
        ((1,), "prompt_logprobs", None),
        ((), "prompt_logprobs", None),
        ((1,), "beam_search", "beam_search"),
    ],
)
def test_the_reason_for_less_pruning(
    stages: tuple[int, ...], excluded: str | None, reason: str | None
) -> None:
    assert unpruned_reason(plan_with(stages), excluded) == reason
