"""Why a request got less than it asked for, said by name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.plan.prompt import Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan
from metok_vllm.server.chat.fallbacks import (
    asks_prompt_logprobs,
    fallback_reason,
    prefill_kind,
    unpruned_reason,
)
from metok_vllm.server.chat.serving import MetokChatRequest

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
    ("stages", "decode_keep", "whole", "step_tokens", "reason"),
    [
        ((1, 2, 3), 0.0, None, 64, None),
        ((1, 2, 3), 0.0, None, 63, "chunked_prefill"),
        ((2,), 0.0, None, 63, "chunked_prefill"),
        # Evicting all of it needs no ranks, so chunks take nothing away.
        ((1, 3), 0.0, None, 63, None),
        ((1, 3), 0.5, None, 63, "chunked_prefill"),
        ((1, 2, 3), 0.0, "prompt_logprobs", 64, "prompt_logprobs"),
        ((1, 2, 3), 0.0, "prompt_logprobs", 63, "prompt_logprobs"),
        ((1,), 0.0, "prompt_logprobs", 63, None),
        ((), 0.0, "prompt_logprobs", 63, None),
        ((1,), 0.0, "beam_search", 63, "beam_search"),
    ],
)
def test_what_kept_stages_2_and_3_from_their_work(
    stages: tuple[int, ...],
    decode_keep: float,
    whole: str | None,
    step_tokens: int,
    reason: str | None,
) -> None:
    plan = plan_with(stages, decode_keep)
    prompt_plan = None if whole else plan.prompt_plan(64, step_tokens)
    assert unpruned_reason(plan, prompt_plan, whole) == reason


def test_how_a_prompt_was_prefilled() -> None:
    assert prefill_kind(plan_with((1, 3)), 64, 64) == "one_step"
    assert prefill_kind(plan_with((1, 2)), 65, 64) == "chunked"
    assert prefill_kind(plan_with((1,)), 65, 64) is None
    assert prefill_kind(plan_with(()), 65, 64) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt_logprobs": 0},
        {"prompt_logprobs": 2},
        {"echo": True},
        {"echo": True, "top_logprobs": 3, "logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"echo": True, "top_logprobs": None},
    ],
)
def test_prompt_logprobs_as_the_engine_is_asked_for_them(fields: dict[str, Any]) -> None:
    body = MetokChatRequest(messages=[{"role": "user", "content": "?"}], model="m", **fields)
    engine_is_asked = body.to_sampling_params(8, {}).prompt_logprobs is not None
    assert asks_prompt_logprobs(body) == engine_is_asked


def test_beam_search_never_asks_for_them() -> None:
    messages = [{"role": "user", "content": "?"}]
    body = MetokChatRequest(messages=messages, model="m", use_beam_search=True, prompt_logprobs=2)
    assert not asks_prompt_logprobs(body)
