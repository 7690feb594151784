"""Qwen's videos out of the feature cache, vLLM's encoder cache and its prefix cache.

Positions and deepstack's features travel with the tokens, so a cache that cuts or reuses them must
not lose either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.models.feature_cache import FeatureCache
from metok_vllm.plan.layout import VideoLayout
from tests.engine.staged import Answer, StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import QWEN, Clip, Parts, make_prompt
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL

pytestmark = pytest.mark.slow

TOLERANCE, NEW_TOKENS = 1e-3, 12
CLIP = Clip(5, (3, 6, 2, 5, 4), (64, 224), fps=3.0)
FRAMES = sum(CLIP.lengths)
# The chunks of a step end elsewhere in the same video.
CHUNKINGS: list[Parts] = [(5, CLIP, 26), (150, CLIP, 60), (220, CLIP, 300)]


@dataclass
class Watched:
    """An engine; `seen` are the temporal patches of each run of its tower for METok."""

    engine: StagedEngine
    seen: list[int] = field(default_factory=list)

    def answer(self, parts: Parts, options: dict[str, Any]) -> Answer:
        return self.engine.answer_alone(make_prompt(parts, options, media=QWEN), NEW_TOKENS)


@pytest.fixture(params=[QWEN3_VL, pytest.param(QWEN2_5_VL, marks=pytest.mark.thorough)])
def watched(
    request: pytest.FixtureRequest,
    mrope_engine: Callable[..., StagedEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> Watched:
    """With all caches empty."""
    watched = Watched(mrope_engine(request.param))
    encoder = watched.engine.model.stage1.video
    see = encoder.see

    def counted(pixels: Tensor, video: VideoLayout) -> Tensor:
        watched.seen.append(len(pixels))
        seen_TPD: Tensor = see(pixels, video)
        return seen_TPD

    watched.engine.reset_caches()
    monkeypatch.setattr(encoder, "see", counted)
    return watched


@pytest.mark.parametrize("reduce", [POOL, SELECT])
def test_a_second_question_needs_no_tower(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, reduce: str
) -> None:
    """Each bit as without the cache, also where tokens are selected and have their own places."""
    prompts = [(parts, {"reduce": reduce, "decode_keep": 0.25}) for parts in CHUNKINGS[:2]]
    right = []
    for prompt in prompts:
        watched.engine.reset_caches()
        right.append(watched.answer(*prompt))
    assert sum(watched.seen) == 2 * FRAMES
    cache = FeatureCache(1 << 26)
    monkeypatch.setattr(watched.engine.model.stage1.video, "cache", cache)
    for prompt, expected in zip(prompts, right, strict=True):
        watched.engine.reset_caches()
        got = watched.answer(*prompt)
        assert got.tokens == expected.tokens
        assert torch.equal(got.logprobs_SV, expected.logprobs_SV)
    assert sum(watched.seen) == 3 * FRAMES
    assert len(cache.entries) == 1


def test_one_encoded_video_in_several_chunkings(watched: Watched) -> None:
    """Its rows are read from vLLM's encoder cache, cut at the borders of chunks."""
    engine = watched.engine
    cases = [without_ties(engine, parts, {}, NEW_TOKENS) for parts in CHUNKINGS]
    engine.reset_caches()
    watched.seen.clear()
    for prompt, expected in cases:
        assert engine.answer_alone(prompt, NEW_TOKENS).error(expected) <= TOLERANCE
    assert sum(watched.seen) == FRAMES


@pytest.mark.parametrize("options", [{"stages": [1]}, {"rule": "vcast"}])
def test_a_shared_prefix_that_ends_inside_the_video(
    watched: Watched, options: dict[str, Any]
) -> None:
    """The rest of the video has its own positions, not those of the video's start."""
    engine = watched.engine
    first, second = (make_prompt((40, CLIP, words), options, media=QWEN) for words in (3, 60))
    engine.reset_caches()
    expected = engine.answer_alone(second, NEW_TOKENS)
    engine.reset_caches()
    engine.answer_alone(first, NEW_TOKENS)
    got = engine.answer_alone(second, NEW_TOKENS)
    assert 41 < got.cached < got.prompt_tokens - 61
    assert got.tokens == expected.tokens
    assert float((got.logprobs_SV - expected.logprobs_SV).abs().max()) <= TOLERANCE
