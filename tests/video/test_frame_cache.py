"""Cached frames equal decoded ones, stay within bounds, and are not shared by tenants."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.errors import MediaBusyError, MediaTooLargeError
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.frame_cache import FRAMES, FrameCache, FrameKey
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.requester import REQUESTER, Requester
from tests.video import clips

FRAME = 96 * 160 * 3
LIMITS = MediaLimits(frame_cache_bytes=1 << 20)


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12"})


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    FRAMES.clear()
    yield
    FRAMES.clear()


def frames(num_bytes: int, fill: int = 0) -> VideoFrames:
    """Frames without a video."""
    pixels_THWC = np.full((num_bytes, 1, 1, 1), fill, np.uint8)
    return VideoFrames((num_bytes, 1, 1, 1), [], [], 1.0, 1.0, 1, "none", 1, 0.5, pixels_THWC)


def key(number: int) -> FrameKey:
    return FrameKey(bytes([number]), 1, -1, LIMITS)


def test_the_next_question_gets_the_same_frames(mp4: bytes) -> None:
    first = read_video(mp4, 4, limits=LIMITS)
    again = read_video(bytes(bytearray(mp4)), 4, limits=LIMITS)
    fresh = read_video(mp4, 4, limits=MediaLimits())
    assert [v.cached for v in (first, again, fresh)] == [False, True, False]
    assert again.decode_s == 0.0 < first.decode_s
    np.testing.assert_array_equal(again.frames_THWC, fresh.frames_THWC)
    actual, expected = vars(again), vars(fresh)
    others = actual.keys() - {"frames_THWC", "cached", "decode_s"}
    assert {name: actual[name] for name in others} == {name: expected[name] for name in others}


def test_nothing_is_cached_by_default(mp4: bytes) -> None:
    read_video(mp4, 4)
    assert not read_video(mp4, 4).cached
    assert FRAMES.held_bytes == 0


@pytest.mark.parametrize(
    "other",
    [
        {"num_frames": 5},
        {"fps": 2.0},
        {"limits": replace(LIMITS, max_decoded_bytes=FRAME)},
        {"limits": replace(LIMITS, backend="pyav")},
    ],
    ids=["frames", "rate", "size", "reader"],
)
def test_all_that_determines_the_frames_is_in_the_key(mp4: bytes, other: dict[str, Any]) -> None:
    read_video(mp4, 4, limits=LIMITS)
    arguments: dict[str, Any] = {"num_frames": 4, "limits": LIMITS} | other
    found = read_video(mp4, **arguments)
    assert not found.cached
    FRAMES.clear()
    np.testing.assert_array_equal(found.frames_THWC, read_video(mp4, **arguments).frames_THWC)


def test_tenants_do_not_share_entries(mp4: bytes) -> None:
    def read(tenant: str) -> VideoFrames:
        REQUESTER.set(Requester(tenant=tenant))
        return read_video(mp4, 4, limits=LIMITS)

    answers = [copy_context().run(read, tenant).cached for tenant in ("a", "b", "", "a", "b", "")]
    assert answers == [False, False, False, True, True, True]


def test_other_bytes_are_another_video(mp4: bytes) -> None:
    read_video(mp4, 4, limits=LIMITS)
    assert not read_video(clips.encode(num_frames=40), 4, limits=LIMITS).cached


def test_limits_apply_to_cached_frames(mp4: bytes) -> None:
    read_video(mp4, 4, limits=LIMITS)
    with pytest.raises(MediaTooLargeError):
        read_video(mp4, 4, limits=replace(LIMITS, max_bytes=10))
    with pytest.raises(MediaTooLargeError):
        read_video(mp4, 4, limits=replace(LIMITS, max_frames=3))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.booleans())), st.integers(0, 99)
)
def test_bounded_and_least_recently_used_first_out(
    steps: list[tuple[int, int, bool]], most_bytes: int
) -> None:
    """Against a list in order of use, whose bytes are summed at every step."""
    cache = FrameCache()
    used: list[tuple[int, int]] = []
    for number, num_bytes, is_lookup in steps:
        if is_lookup:
            found = cache.find(key(number))
            kept = next((entry for entry in used if entry[0] == number), None)
            assert (found is None) == (kept is None)
            if kept is not None and found is not None:
                assert found.frames_THWC.nbytes == kept[1]
                used.append(used.pop(used.index(kept)))
        else:
            cache.keep(key(number), frames(num_bytes), most_bytes)
            if num_bytes <= most_bytes:
                used = [entry for entry in used if entry[0] != number] + [(number, num_bytes)]
            while sum(size for _, size in used) > most_bytes:
                used.pop(0)
        assert cache.held_bytes == sum(size for _, size in used) <= most_bytes


def test_cached_frames_are_evicted_for_waiting_videos() -> None:
    """The budget of samples takes two of these; kept ones do not count against the third."""
    gc.collect()
    limits = replace(LIMITS, max_pending_bytes=9 * FRAME, max_decoded_bytes=4 * FRAME)
    others = [clips.encode(num_frames=count) for count in (20, 30, 40, 50)]
    for data in others:
        assert not read_video(data, 4, limits=limits).cached
    assert FRAMES.held_bytes == 8 * FRAME
    assert read_video(others[-1], 4, limits=limits).cached


def test_frames_in_use_keep_their_memory(mp4: bytes) -> None:
    """Dropped from the cache, they still count for as long as a request holds them."""
    gc.collect()
    limits = replace(LIMITS, max_pending_bytes=5 * FRAME, decode_deadline_s=1.0)
    mine = read_video(mp4, 4, limits=limits)
    seen_THWC = mine.frames_THWC.copy()
    with pytest.raises(MediaBusyError, match="as much video as it may hold"):
        read_video(clips.encode(num_frames=20), 4, limits=limits)
    assert FRAMES.held_bytes == 0
    np.testing.assert_array_equal(mine.frames_THWC, seen_THWC)


def test_many_threads(mp4: bytes) -> None:
    datas = [mp4, clips.encode(num_frames=20), clips.encode(num_frames=30)]
    expected = [read_video(data, 4).frames_THWC.copy() for data in datas]
    limits = replace(LIMITS, frame_cache_bytes=8 * FRAME)

    def ask(number: int) -> bool:
        video = read_video(datas[number % 3], 4, limits=limits)
        return bool((video.frames_THWC == expected[number % 3]).all())

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(60)))
    assert FRAMES.held_bytes == 8 * FRAME


def test_a_forked_child_starts_without(mp4: bytes) -> None:
    read_video(mp4, 4, limits=LIMITS)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not FRAMES.drop_oldest() and FRAMES.held_bytes == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
