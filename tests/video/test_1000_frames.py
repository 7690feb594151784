"""A sample of 1,000 frames is decoded within the default limits, but for `max_frames`."""

from __future__ import annotations

import time

import numpy as np
import pytest

from metok_vllm.video import MediaLimits, read_video
from tests.video import clips

FRAMES = 1000
LIMITS = MediaLimits(max_frames=1024)


@pytest.fixture(scope="module")
def film() -> bytes:
    """7,200 frames at 25 a second, with a keyframe at every 120th."""
    options = {"bf": "0", "preset": "ultrafast", "crf": "40", "g": "120", "sc_threshold": "0"}
    part = clips.encode(size=(320, 192), num_frames=120, options=options)
    return clips.repeated(part, 60)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_1000_frames_within_the_deadline(film: bytes, backend: str) -> None:
    limits = MediaLimits(max_frames=1024, backend=backend)
    started = time.monotonic()
    video = read_video(film, FRAMES, limits=limits)
    assert time.monotonic() - started < LIMITS.decode_deadline_s == 30
    assert video.frames_THWC.shape == (FRAMES, 192, 320, 3)
    assert video.frames_THWC.nbytes <= LIMITS.max_decoded_bytes
    times = np.asarray(video.timestamps_s)
    assert (np.diff(times) > 0).all()
    # Evenly over the whole film.
    assert times[0] == 0
    assert times[-1] > 0.99 * video.duration_s
    assert np.ptp(np.diff(times)) <= 2 / 25  # two frames


def test_larger_frames_are_scaled_down_to_the_limit() -> None:
    """1,000 frames of 640 x 368 are 707 MB; the sample of a decoded video has 256 MiB."""
    options = {"bf": "0", "preset": "ultrafast", "crf": "40", "g": "120", "sc_threshold": "0"}
    part = clips.encode(size=(640, 368), num_frames=125, options=options)
    video = read_video(clips.repeated(part, 8), FRAMES, limits=LIMITS)
    count, height, width, _ = video.frames_THWC.shape
    assert count == FRAMES
    assert video.frames_THWC.nbytes <= LIMITS.max_decoded_bytes
    assert (height, width) == (368 // 2, 640 // 2)
