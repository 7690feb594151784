"""The feature cache: a second question about a video skips the towers and gets the same answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.models.feature_cache import FeatureCache
from metok_vllm.plan.layout import VideoLayout
from tests.engine.engines import model_of, reset_caches
from tests.engine.prompts import answer, chat_prompt, logprobs, token_ids, video

pytestmark = pytest.mark.slow

# More frames than one batch of the vision tower, and fewer.
LONG, SHORT = video(11, (4, 11, 3, 6, 8, 5)), video(12, (3, 4))
QUESTIONS = ("a red ball rolls across the grass", "where does the small boat sail tonight?")


@dataclass
class Caching:
    """The engine with a feature cache; `seen` are the frames of each run of its vision tower."""

    llm: Any
    model: Any
    seen: list[int] = field(default_factory=list)

    @property
    def stage1(self) -> Any:
        return self.model.stage1

    def ask(self, question: str, clip: Any, uuid: str | None = None, **options: Any) -> Any:
        prompt = chat_prompt(question, videos=[clip], options=options)
        if uuid is not None:
            prompt["multi_modal_uuids"] = {"video": [uuid]}
        return answer(self.llm, [prompt])[0]

    def ask_alone(self, question: str, clip: Any, **options: Any) -> Any:
        """The answer without any cache."""
        cache, seen = self.stage1.video.cache, list(self.seen)
        self.stage1.video.cache = FeatureCache(0)
        reset_caches(self.llm)
        output = self.ask(question, clip, **options)
        reset_caches(self.llm)
        self.stage1.video.cache, self.seen[:] = cache, seen
        return output


@pytest.fixture
def caching(metok: Any, monkeypatch: pytest.MonkeyPatch) -> Caching:
    """The shared engine with empty caches and a feature cache."""
    caching = Caching(metok, model_of(metok))
    video_encoder = caching.stage1.video
    see = video_encoder.see

    def counted(pixels_TCHW: Tensor, layout: VideoLayout) -> Tensor:
        caching.seen.append(len(pixels_TCHW))
        seen_TPD: Tensor = see(pixels_TCHW, layout)
        return seen_TPD

    reset_caches(metok)
    caching.stage1.events.entries.clear()
    monkeypatch.setattr(video_encoder, "see", counted)
    monkeypatch.setattr(video_encoder, "cache", FeatureCache(1 << 26))
    return caching


def same(got: Any, expected: Any) -> None:
    assert got.prompt_token_ids == expected.prompt_token_ids
    assert token_ids(got) == token_ids(expected)
    assert logprobs(got) == logprobs(expected)


@pytest.mark.parametrize("clip", [LONG, SHORT], ids=["in chunks", "in one chunk"])
def test_two_questions_about_one_video(caching: Caching, clip: Any) -> None:
    """Each bit as without the cache; the frames are seen once."""
    for question in QUESTIONS:
        expected = caching.ask_alone(question, clip)
        same(caching.ask(question, clip), expected)
    assert sum(caching.seen) == len(clip[0])
    reports = [caching.stage1.events.report(key) for key in list(caching.stage1.events.entries)]
    assert [entry["cached"] for entry in reports] == [False, True]
    assert reports[0]["relevance_of_frame"] != reports[1]["relevance_of_frame"]


def test_frames_that_others_may_hold_are_not_written_to(metok: Any) -> None:
    """The media layer gives kept frames to several requests without a copy."""
    frames, metadata = video(13, (3, 5))
    before = frames.copy()
    for options in ({}, {"enabled": False}):
        answer(metok, [chat_prompt(QUESTIONS[0], videos=[(frames, metadata)], options=options)])
    assert (frames == before).all()


def test_settings_and_rules_share_what_the_towers_gave(caching: Caching) -> None:
    caching.ask(QUESTIONS[0], LONG)
    for options in ({"preset": "max"}, {"stages": [2, 3]}, {"rule": "vidcom2"}):
        expected = caching.ask_alone(QUESTIONS[1], LONG, **options)
        same(caching.ask(QUESTIONS[1], LONG, **options), expected)
    assert sum(caching.seen) == len(LONG[0])


def test_two_questions_at_once_see_the_video_once(caching: Caching) -> None:
    answer(caching.llm, [chat_prompt(question, videos=[LONG]) for question in QUESTIONS])
    assert sum(caching.seen) == len(LONG[0])


def test_another_video_is_another_entry(caching: Caching) -> None:
    frames, metadata = LONG
    other = frames.copy()
    other[-1, 0, 0, 0] ^= 1
    for clip in (LONG, (other, metadata), SHORT):
        caching.ask(QUESTIONS[0], clip)
    assert sum(caching.seen) == 2 * len(frames) + len(SHORT[0])


def test_a_client_s_id_names_the_content(caching: Caching) -> None:
    """It is trusted, as in vLLM; another number of frames under the same id is seen, not mixed."""
    first = caching.ask(QUESTIONS[0], LONG)
    caching.stage1.video.cache.clear()
    same(caching.ask(QUESTIONS[0], LONG, uuid="clip"), first)
    assert sum(caching.seen) == 2 * len(LONG[0])
    caching.ask(QUESTIONS[1], LONG, uuid="clip")
    assert sum(caching.seen) == 2 * len(LONG[0])
    caching.ask("how many cats?", SHORT, uuid="clip")
    assert sum(caching.seen) == 2 * len(LONG[0]) + len(SHORT[0])


def test_the_bound_holds_and_the_oldest_goes(caching: Caching) -> None:
    cache = caching.stage1.video.cache
    clips = [video(seed, (3, 4)) for seed in (31, 32, 33)]
    caching.ask(QUESTIONS[0], clips[0])
    cache.most_bytes = 2 * cache.held_bytes
    for clip in clips[1:]:
        caching.ask(QUESTIONS[0], clip)
    assert cache.held_bytes == cache.most_bytes
    seen = sum(caching.seen)
    caching.ask(QUESTIONS[1], clips[1])
    assert sum(caching.seen) == seen
    caching.ask(QUESTIONS[1], clips[0])
    assert sum(caching.seen) == seen + len(clips[0][0])


def test_new_weights_are_seen_with(caching: Caching) -> None:
    caching.ask(QUESTIONS[0], LONG)
    caching.model.load_weights([])
    caching.ask(QUESTIONS[1], LONG)
    assert sum(caching.seen) == 2 * len(LONG[0])


def test_nothing_kept_shares_memory_with_what_the_decoder_gets(caching: Caching) -> None:
    """vLLM's encoder cache keeps the tokens: they must not hold on to features, nor change them."""
    caching.ask(QUESTIONS[0], LONG)
    (features,) = caching.stage1.video.cache.entries.values()
    before = [part.clone() for parts in features.pooled.values() for part in parts]
    caching.ask(QUESTIONS[1], LONG)
    after = [part for parts in features.pooled.values() for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_times_lie_in_each_other_and_are_told_once(caching: Caching) -> None:
    reports = []
    for question in QUESTIONS:
        caching.ask(question, LONG)
        (key, *_) = reversed(caching.stage1.events.entries)
        reports.append(caching.stage1.events.report(key))
        assert caching.stage1.events.report(key)["prefill_seconds"] is None
    for entry in reports:
        assert 0 < entry["own_seconds"] < entry["seconds"]
        assert 0 < entry["pruning_seconds"] < entry["prefill_seconds"]
    assert reports[1]["seconds"] < reports[0]["seconds"]
