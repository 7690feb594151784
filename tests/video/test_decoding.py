"""Both readers give the frames of a plain full decode; frames shrink to the memory limit."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.decoding import downscale_factor, shrink
from tests.video import clips

GOP = {"g": "12", "bf": "3"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=12:scenecut=0"}
TIMES_MS = np.cumsum([0, *np.random.default_rng(1).choice([20, 33, 50, 120], 59)]).tolist()

# Clips that decord reads exactly, too.
BOTH: dict[str, Callable[[], bytes]] = {
    "B-frames": lambda: clips.encode(options=GOP),
    "one GOP": lambda: clips.encode(options={"bf": "2"}),
    "variable rate": lambda: clips.encode(times_ms=TIMES_MS, options=GOP),
    "late start": lambda: clips.encode(times_ms=[t + 1500 for t in TIMES_MS], options=GOP),
    "odd size": lambda: clips.encode(size=(163, 97), pixels="yuv444p", options=GOP),
    "width not of 16": lambda: clips.encode(size=(426, 240), num_frames=20, options=GOP),
    "BT.709": lambda: clips.encode(colorspace=1, options=GOP),
    "turned 90": lambda: clips.rotated(clips.encode(options=GOP), 90),
    "turned 180": lambda: clips.rotated(clips.encode(options=GOP), 180),
    "turned 270": lambda: clips.rotated(clips.encode(options=GOP), 270),
    "mkv": lambda: clips.encode(container="matroska", options=GOP),
    "vp9": lambda: clips.encode("libvpx-vp9", "webm", options={"g": "12", "cpu-used": "8"}),
}
# Clips on which decord is wrong, cannot decode, or differs in rounding: PyAV alone.


def av1() -> bytes:
    """For root, SVT-AV1 makes the calling thread real-time, and all that it starts afterwards."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        return clips.encode("libsvtav1", num_frames=20, options={"preset": "12"})
    finally:
        os.sched_setscheduler(0, policy, parameters)


PYAV_ONLY: dict[str, Callable[[], bytes]] = {
    "open GOP": lambda: clips.encode(options=OPEN_GOP),
    "mpeg4 with B-frames": lambda: clips.encode("mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg4": lambda: clips.encode("mpeg4", options={"g": "12"}),
    "mjpeg": lambda: clips.encode("mjpeg", "mov", pixels="yuvj420p", num_frames=20),
    "edit list": lambda: clips.cut_start(clips.encode(options=GOP), 1),
    "avi": lambda: clips.encode("mpeg4", "avi", options={"g": "12", "bf": "2"}),
    "mpeg-ts": lambda: clips.encode(container="mpegts", options=GOP),
    "flv": lambda: clips.encode("flv", "flv", options={"g": "12"}),
    "wmv": lambda: clips.encode("wmv2", "asf", options={"g": "12"}),
    "10 bit": lambda: clips.encode(pixels="yuv420p10le", options=GOP),
    "av1": av1,
    "gif": lambda: clips.encode("gif", "gif", size=(64, 48), pixels="rgb8", num_frames=10),
    "2 x 2": lambda: clips.encode(size=(2, 2), num_frames=5),
    "1 x 1": lambda: clips.encode("mjpeg", size=(1, 1), pixels="yuvj444p", num_frames=5),
    "1 x 1 raw": lambda: clips.encode("rawvideo", "avi", size=(1, 1), pixels="bgr24"),
}


def check(data: bytes, backend: str, expected_backend: str) -> None:
    """Few frames (by seeking) and all of them against the full decode, with their times."""
    every_THWC, times = clips.decode_all(data)
    for num_frames in (1, 7, 128):
        video = read_video(data, num_frames, limits=MediaLimits(backend=backend))
        assert video.backend == expected_backend
        assert video.total_frames == len(every_THWC)
        assert len(video.indices) == min(num_frames, len(every_THWC))
        np.testing.assert_array_equal(video.frames_THWC, every_THWC[video.indices])
        seconds = [times[i] - times[0] for i in video.indices]
        assert video.timestamps_s == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_both_backends_are_exact(name: str) -> None:
    data = BOTH[name]()
    check(data, "pyav", "pyav")
    check(data, "decord", "decord")
    assert read_video(data, 2).backend == "pyav"


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_pyav_where_decord_is_not_exact(name: str) -> None:
    data = PYAV_ONLY[name]()
    check(data, "auto", "pyav")
    with pytest.raises(MediaError, match=r"decord|cannot be decoded") as caught:
        read_video(data, 2, limits=MediaLimits(backend="decord"))
    assert caught.value.reason == "decode_failed"


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_video_that_breaks_off(backend: str) -> None:
    whole = clips.encode(container="matroska", options=GOP)
    every_THWC, _ = clips.decode_all(whole)
    data = whole[: len(whole) * 2 // 3]
    video = read_video(data, 4, limits=MediaLimits(backend=backend))
    assert 20 < video.total_frames < 60
    assert len(video.indices) >= 3
    # The very last packet may be half a frame.
    np.testing.assert_array_equal(video.frames_THWC[:3], every_THWC[video.indices[:3]])


def test_factor_is_the_smallest_that_fits() -> None:
    assert downscale_factor(4, 96, 160, 4 * 96 * 160 * 3) == 1
    assert downscale_factor(4, 96, 160, 4 * 96 * 160 * 3 - 1) == 2
    assert downscale_factor(128, 4000, 4000, 1 << 30) == 3
    assert downscale_factor(9, 7, 5, 1) == 5


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 12, 2), (9, 13, 4), (40, 50, 20)])
def test_shrink_is_the_mean_of_blocks(height: int, width: int, factor: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    small = shrink(frame, factor)
    assert small.shape == (height // factor, width // factor, 3)
    for y in range(small.shape[0]):
        for x in range(small.shape[1]):
            block = frame[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            mean = np.floor(block.reshape(-1, 3).mean(axis=0) + 0.5)
            np.testing.assert_array_equal(small[y, x], mean)


@pytest.mark.parametrize("factor", [15, 16, 17])
def test_shrink_keeps_white(factor: int) -> None:
    white = np.full((factor * 2, factor * 3, 3), 255, np.uint8)
    np.testing.assert_array_equal(shrink(white, factor), white[:2, :3])


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_frames_fit_the_limit(backend: str) -> None:
    data = clips.encode(options={"g": "12"})
    whole = read_video(data, 6, limits=MediaLimits(backend=backend))
    assert whole.downscale == 1
    limits = MediaLimits(backend=backend, max_decoded_bytes=6 * 96 * 160 * 3 // 5)
    video = read_video(data, 6, limits=limits)
    assert video.downscale == 3
    assert video.frames_THWC.nbytes <= limits.max_decoded_bytes
    expected = np.stack([shrink(frame, 3) for frame in whole.frames_THWC])
    np.testing.assert_array_equal(video.frames_THWC, expected)
