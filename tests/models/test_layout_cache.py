"""Layouts of videos are kept within bounds, the least recently used dropped first."""

from __future__ import annotations

from metok_vllm.models.layout_cache import LayoutCache
from metok_vllm.plan.layout import VideoLayout


def layout(frames: int, separators: int = 0) -> VideoLayout:
    """With as many separators in front of each frame."""
    before = (tuple(range(separators)),) * frames if separators else ()
    return VideoLayout(frames, 3, 5, before=before, after=((),) * len(before))


def test_what_was_put_is_found() -> None:
    cache = LayoutCache()
    cache.put("a", layout(4))
    assert cache.get("a") == layout(4)
    assert cache.get("b") is None


def test_the_oldest_goes_unless_it_was_read() -> None:
    cache = LayoutCache(max_videos=2)
    for name in "ab":
        cache.put(name, layout(4))
    cache.get("a")
    cache.put("c", layout(4))
    assert list(cache.entries) == ["a", "c"]


def test_separators_are_what_takes_memory() -> None:
    cache = LayoutCache(max_separators=10)
    cache.put("a", layout(2, 2))
    cache.put("b", layout(3, 2))
    assert cache.separators == 10
    cache.put("c", layout(1, 1))
    assert list(cache.entries) == ["b", "c"]
    assert cache.separators == 7


def test_a_layout_in_place_of_another_counts_once() -> None:
    """A client may give one id to two videos."""
    cache = LayoutCache(max_separators=10)
    cache.put("a", layout(3, 2))
    cache.put("a", layout(2, 2))
    assert cache.separators == 4
    assert cache.get("a") == layout(2, 2)


def test_a_video_that_is_too_large_is_kept_alone() -> None:
    """The request that brought it reads it once more."""
    cache = LayoutCache(max_separators=10)
    cache.put("a", layout(1, 1))
    cache.put("b", layout(6, 2))
    assert list(cache.entries) == ["b"]
    cache.put("c", layout(1, 1))
    assert list(cache.entries) == ["c"]
    assert cache.separators == 1
