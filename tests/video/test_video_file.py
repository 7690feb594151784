"""Open video files: closed once, identified without being read where they may be long."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video import video_file as module
from metok_vllm.video.channel import anonymous_file, write_all
from metok_vllm.video.limits import Transport
from metok_vllm.video.video_file import VideoFile, in_memory
from tests.video import clips

CLIP = clips.encode(num_frames=12, size=(64, 48))
OTHER = clips.encode(num_frames=12, size=(32, 48))
LIMITS = MediaLimits(frame_cache_bytes=16 << 20)


def local(path: Path) -> VideoFile:
    return VideoFile(path.open("rb", buffering=0), Transport.LOCAL)


def test_it_is_closed_and_released_once() -> None:
    released: list[int] = []
    content = anonymous_file()
    write_all(content, CLIP)
    file = VideoFile(content, Transport.REMOTE, lambda: released.append(1))
    with file:
        assert file.read() == CLIP
    file.close()
    assert file.file.closed
    del file
    gc.collect()
    assert released == [1]


def test_a_lost_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP)
    before = len(os.listdir("/proc/self/fd"))
    file = local(tmp_path / "a.mp4")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del file
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_frames_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP)
    expected = read_video(CLIP, 5).frames_THWC
    for file in (local(tmp_path / "a.mp4"), in_memory(CLIP, Transport.REMOTE)):
        with file:
            assert (read_video(file, 5).frames_THWC == expected).all()
            assert (read_video(file, 5).frames_THWC == expected).all()


def test_the_limit_is_that_of_its_way() -> None:
    limits = replace(LIMITS, max_bytes=1)
    with in_memory(CLIP, Transport.REMOTE) as file:
        assert len(read_video(file, 3, limits=limits).indices) == 3
        with pytest.raises(MediaTooLargeError, match="max-remote-bytes"):
            read_video(file, 3, limits=replace(limits, max_remote_bytes=1))


def test_cached_frames_of_a_local_file_follow_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"

    def read() -> tuple[bool, tuple[int, ...]]:
        with local(path) as file:
            video = read_video(file, 4, limits=LIMITS)
            return video.cached, video.frames_THWC.shape

    path.write_bytes(CLIP)
    assert read() == read() == (False, (4, 48, 64, 3))  # written a moment ago
    monkeypatch.setattr(module, "UNSETTLED_NS", 0)
    assert read() == (False, (4, 48, 64, 3))
    assert read() == (True, (4, 48, 64, 3))
    path.write_bytes(OTHER)
    assert read() == (False, (4, 48, 32, 3))


def test_fetched_files_are_known_by_their_content() -> None:
    with in_memory(CLIP, Transport.REMOTE) as one, in_memory(CLIP, Transport.REMOTE) as two:
        assert one.digest() == two.digest() is not None
    with in_memory(OTHER, Transport.REMOTE) as other, in_memory(CLIP, Transport.REMOTE) as one:
        assert one.digest() != other.digest()
