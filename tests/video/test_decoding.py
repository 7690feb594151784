"""Shrinking frames to the memory limit."""

from __future__ import annotations

import numpy as np
import pytest

from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.decoding import downscale_factor, shrink
from tests.video import clips


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
