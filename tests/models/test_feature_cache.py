"""The feature cache's bound and order, and that a hit gives what the towers would have given."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metok_vllm.alignment import Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.models.feature_cache import FeatureCache, VideoFeatures
from metok_vllm.models.request import EncodeRequest, pack, selection_payload, unpack
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.layout import VideoLayout
from tests.layouts import square
from tests.reference.strategies import bounded

GRID, WIDTH, CHUNK = 4, 6, 5
FRAME_BYTES = 4 * WIDTH  # of features that have nothing but the means
PIXELS = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), GRID)
QUERY, OTHER_QUERY = ((1, 2, 3),), ((4, 5, 6), (0, 1, 0))
NEWLINE = torch.linspace(-1, 1, WIDTH)


def of_frames(frames: int) -> VideoFeatures:
    return VideoFeatures(torch.zeros(frames, WIDTH), None, {})


asks = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 4)), max_size=40)


@bounded
@given(st.integers(0, 9), asks)
def test_bound_and_order_are_those_of_a_plain_list(
    most_frames: int, lookups: list[tuple[str, int]]
) -> None:
    """Against the rule in a few lines: frames instead of bytes, a list instead of a table."""
    cache = FeatureCache(most_frames * FRAME_BYTES)
    kept: list[tuple[str, int]] = []
    for video in lookups:
        content, frames = video
        found = cache.find(content, square(frames, 1), (), False)
        assert (found is not None) == (video in kept)
        if found is None:
            cache.keep(content, square(frames, 1), of_frames(frames))
            if frames <= most_frames:
                kept.append(video)
        else:
            kept.append(kept.pop(kept.index(video)))
        while sum(number for _, number in kept) > most_frames:
            kept.pop(0)
        assert list(cache.entries) == [(name, square(number, 1), POOL) for name, number in kept]
        held = sum(features.nbytes for features in cache.entries.values())
        assert cache.held_bytes == held == FRAME_BYTES * sum(number for _, number in kept)
        assert held <= cache.most_bytes


def test_the_same_video_is_held_once() -> None:
    cache = FeatureCache(10 * FRAME_BYTES)
    for _ in range(3):
        cache.keep("a", square(4, 1), of_frames(4))
    assert cache.held_bytes == 4 * FRAME_BYTES
    cache.clear()
    assert (cache.held_bytes, cache.entries) == (0, OrderedDict())


def test_a_view_counts_with_all_it_keeps() -> None:
    whole = torch.zeros(100, WIDTH)
    features = VideoFeatures(torch.zeros(2, WIDTH), whole[:2], {2: (whole[2:3], whole[3:4])})
    assert features.nbytes == (2 + 100) * FRAME_BYTES


def test_places_of_selected_tokens_count() -> None:
    places = {2: (torch.zeros(2, 3, dtype=torch.int64),)}
    features = VideoFeatures(torch.zeros(2, WIDTH), None, {}, SELECT, places)
    assert features.nbytes == 2 * FRAME_BYTES + 2 * 3 * 8


def test_features_without_a_requested_part_are_no_hit() -> None:
    cache = FeatureCache(1000)
    features = VideoFeatures(torch.zeros(1, WIDTH), None, {2: (torch.zeros(1, 1, 1),)})
    one, two = square(1, 1), square(2, 1)
    cache.keep("a", one, features)
    assert cache.find("a", one, (2,), False) is not None
    assert cache.find("a", one, (2, 4), False) is None
    assert cache.find("a", one, (2,), True) is None
    assert cache.find("a", two, (2,), False) is None
    assert cache.find("a", one, (2,), False, SELECT) is None
    assert cache.find(None, one, (2,), False) is None


def test_memory_is_set_aside_until_the_first_video() -> None:
    """A CPU's KV cache does not take what is free, and a cache that is off needs nothing."""

    def reserved(cache: FeatureCache) -> int:
        return 0 if cache.reserved is None else cache.reserved.nbytes

    device = torch.device("meta")
    cache, off = FeatureCache(1000), FeatureCache(0)
    cache.reserve(torch.device("cpu"))
    off.reserve(device)
    assert reserved(cache) == reserved(off) == 0
    cache.reserve(device)
    assert reserved(cache) == 1000
    cache.keep("a", square(1, 1), of_frames(1))
    assert reserved(cache) == 0


class Towers:
    """Alignment towers of one line each, which count how often frames came through."""

    normalisation = PIXELS
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.frames = 0

    def embed_text(self, ids_WL: Tensor) -> Tensor:
        return torch.cat([ids_WL.float().amax(0), ids_WL.float().amin(0)])

    def embed_frames(self, pixels_TCHW: Tensor) -> Tensor:
        self.frames += len(pixels_TCHW)
        return pixels_TCHW.flatten(2)[:, :, :2].flatten(1)

    def embed_features(self, features_TPD: Tensor) -> Tensor:
        return self.embed_frames(features_TPD.mT[..., None])


class Setting:
    """An encoder of random weights; `seen` are the frames that went through its vision tower."""

    def __init__(self, towers: bool = True, **settings: Any) -> None:
        self.base = METokConfig(num_events=3, encoder_chunk_frames=CHUNK, **settings)
        self.seen = 0
        self.towers = Towers()
        stand_in: Any = self.towers if towers else None
        weight_CD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
        self.stage1 = Stage1Encoder(
            self.base, self.see, lambda x: (x @ weight_CD).tanh(), PIXELS, stand_in
        )

    def see(self, pixels_TCHW: Tensor, _: VideoLayout) -> Tensor:
        self.seen += len(pixels_TCHW)
        return pixels_TCHW.flatten(2).mT

    def ask(
        self,
        pixels_TCHW: Tensor,
        query: tuple[tuple[int, ...], ...] = QUERY,
        content: str | None = "video",
        **settings: Any,
    ) -> Tensor:
        config = replace(self.base, **settings)
        key = f"{content}{query}{settings}"
        request = EncodeRequest(key, config, query, content)
        return self.stage1.encode(pixels_TCHW, NEWLINE, request, square(len(pixels_TCHW), GRID))


def clip(frames: int, seed: int = 3) -> Tensor:
    return torch.randn(frames, 3, GRID, GRID, generator=torch.Generator().manual_seed(seed))


LONG, SHORT = clip(2 * CHUNK + 3), clip(CHUNK - 1)
ASKS: dict[str, dict[str, Any]] = {
    "another question": {"query": OTHER_QUERY},
    "no question": {"query": ()},
    "other events": {"num_events": 2, "key_event_ratio": 0.4, "key_frames_per_event": 1},
    "without stage 1": {"stages": (2, 3)},
    "another rule": {"rule": "vidcom2", "rule_keep": 0.5},
}


@pytest.mark.parametrize("mode", ["separate", "shared"])
@pytest.mark.parametrize("pixels", [LONG, SHORT], ids=["in chunks", "in one chunk"])
@pytest.mark.parametrize("ask", ASKS)
def test_a_hit_gives_what_the_towers_would(ask: str, pixels: Tensor, mode: str) -> None:
    cached = Setting(alignment_mode=mode, feature_cache_bytes=1 << 20)
    cached.ask(pixels)
    hit = cached.ask(pixels, **ASKS[ask])
    assert (cached.seen, cached.towers.frames) == (len(pixels), len(pixels))
    for cache_bytes in (1 << 20, 0):
        alone = Setting(alignment_mode=mode, feature_cache_bytes=cache_bytes)
        assert torch.equal(hit, alone.ask(pixels, **ASKS[ask]))
        assert alone.seen == len(pixels)


def test_what_is_decided_follows_the_question() -> None:
    setting = Setting(feature_cache_bytes=1 << 20)
    alone = Setting()
    reports = []
    for query in (QUERY, OTHER_QUERY):
        setting.ask(LONG, query)
        alone.ask(LONG, query)
        (key, *_) = reversed(setting.stage1.events.entries)
        here, there = setting.stage1.events.report(key), alone.stage1.events.report(key)
        assert here is not None
        assert there is not None
        assert 0 < here["own_seconds"] < here["seconds"]
        reports.append(here)
        once = {"seconds": None, "own_seconds": None, "cached": None}
        assert {**here, **once} == {**there, **once} == setting.stage1.events.report(key)
    assert [entry["cached"] for entry in reports] == [False, True]
    assert reports[0]["relevance_of_frame"] != reports[1]["relevance_of_frame"]
    assert setting.seen == len(LONG)


@pytest.mark.parametrize(
    ("settings", "content"),
    [({}, "video"), ({"feature_cache_bytes": 1 << 20}, None), ({"feature_cache_bytes": 1}, "a")],
    ids=["off", "no content key", "larger than the bound"],
)
def test_what_is_not_kept_is_seen_again(settings: dict[str, Any], content: str | None) -> None:
    setting = Setting(**settings)
    first = setting.ask(LONG, content=content)
    assert torch.equal(first, setting.ask(LONG, content=content))
    assert setting.seen == 2 * len(LONG)
    assert not setting.stage1.video.cache.entries


def test_other_content_and_another_number_of_frames_are_seen() -> None:
    setting = Setting(feature_cache_bytes=1 << 20)
    for content, pixels in (("a", LONG), ("b", LONG), ("a", SHORT), ("b", SHORT)):
        setting.ask(pixels, content=content)
    assert setting.seen == 2 * (len(LONG) + len(SHORT))
    for content, pixels in (("b", SHORT), ("a", LONG)):
        setting.ask(pixels, OTHER_QUERY, content=content)
    assert setting.seen == 2 * (len(LONG) + len(SHORT))


def test_a_video_encoded_without_towers_is_ranked_by_a_later_question() -> None:
    """A rule leaves no image embeddings behind: the next question sees the video once more."""
    setting = Setting(feature_cache_bytes=1 << 20)
    setting.ask(LONG, rule="evs")
    assert torch.equal(setting.ask(LONG), Setting().ask(LONG))
    assert setting.seen == 2 * len(LONG)
    setting.ask(LONG, OTHER_QUERY)
    assert setting.seen == 2 * len(LONG)


def test_pooled_and_selected_tokens_are_not_mixed() -> None:
    """Each reduction sees the video once and is then served from its own entry."""
    setting = Setting(feature_cache_bytes=1 << 20)
    for reduce in (POOL, SELECT, SELECT, POOL):
        for query in (QUERY, OTHER_QUERY):
            alone = Setting().ask(LONG, query, reduce=reduce)
            assert torch.equal(setting.ask(LONG, query, reduce=reduce), alone)
    assert setting.seen == 2 * len(LONG)
    setting.ask(LONG, reduce=SELECT, stages=(2, 3))  # dense: nothing is reduced
    assert setting.seen == 2 * len(LONG)


def test_without_towers() -> None:
    setting = Setting(towers=False, feature_cache_bytes=1 << 20)
    setting.ask(LONG)
    hit = setting.ask(LONG, num_events=2)
    assert torch.equal(hit, Setting(towers=False).ask(LONG, num_events=2))
    assert setting.seen == len(LONG)


def test_the_field_carries_the_content_key() -> None:
    config = METokConfig()
    payload = selection_payload(config, torch.tensor(QUERY))
    (request, without) = unpack([pack("k", payload, content="c"), pack("k", payload)], config)
    assert request is not None
    assert without is not None
    assert (request.content, without.content) == ("c", None)
