"""What decoding a video gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Decoded:
    """What a worker reports of the frames it wrote, of `shape` (T, H, W, 3).

    `indices` and `timestamps_s` (seconds from the first frame) name the T frames; damaged ones
    are left out. `fps`, `duration_s` and `total_frames` are those of the whole video. `downscale`
    is the whole factor by which the frames were shrunk to fit `MediaLimits.max_decoded_bytes`.
    `decode_s` is the time the worker took.
    """

    shape: tuple[int, int, int, int]
    indices: list[int]
    timestamps_s: list[float]
    fps: float
    duration_s: float
    total_frames: int
    backend: str
    downscale: int
    decode_s: float


@dataclass(frozen=True)
class VideoFrames(Decoded):
    """Sampled frames of a video, uint8 RGB [T, H, W, 3], upright, and what belongs to them.

    `cached` frames were kept from an earlier question: others may hold the same memory.
    """

    frames_THWC: npt.NDArray[np.uint8]
    cached: bool = False
