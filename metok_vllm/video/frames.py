"""Sampled frames: which ones are taken, how they are turned upright, what decoding returns."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

Frame = npt.NDArray[np.uint8]  # RGB [H, W, 3]


@dataclass(frozen=True)
class Decoded:
    """A worker's report on the frames that it wrote, of `shape` (T, H, W, 3).

    `indices` and `timestamps_s` (seconds from the first frame) name the T frames, without damaged
    ones. `fps`, `duration_s` and `total_frames` describe the whole video. `downscale` is the whole
    factor by which frames were shrunk to fit `MediaLimits.max_decoded_bytes`. `decode_s` is the
    worker's time in seconds.
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
    """Sampled frames of a video, uint8 RGB [T, H, W, 3], upright, with their report.

    `cached` frames come from an earlier request, and others may hold the same memory.
    """

    frames_THWC: npt.NDArray[np.uint8]
    cached: bool = False


def sample_indices(
    total_frames: int, num_frames: int, fps: float = -1, duration_s: float = 0.0
) -> list[int]:
    """Indices of `num_frames` frames spread evenly over `total_frames`, first and last included.

    At most `fps` frames a second of `duration_s`, where `fps` is positive. `num_frames` <= 0
    means all of them. The rule is that of vLLM's `VideoBackend.compute_frames_index_to_sample`
    (vllm/multimodal/video.py), so both loaders take the same frames. Raises ValueError for a
    video without frames.
    """
    if total_frames < 1:
        raise ValueError(f"a video to sample from needs at least one frame, got {total_frames}")
    count = total_frames if num_frames <= 0 else min(num_frames, total_frames)
    if fps > 0:
        count = min(count, math.floor(duration_s * fps))
    indices: list[int] = np.linspace(0, total_frames - 1, max(1, count), dtype=int).tolist()
    return indices


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is shown: transposed, then mirrored left to right and top to bottom."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @property
    def is_mirror(self) -> bool:
        """Whether no rotation alone has the same effect."""
        return self.transposed ^ self.mirrored_x ^ self.mirrored_y

    def upright(self, frame_HWC: Frame) -> Frame:
        """The frame as it is shown."""
        if self.transposed:
            frame_HWC = frame_HWC.transpose(1, 0, 2)
        if self.mirrored_x:
            frame_HWC = frame_HWC[:, ::-1]
        if self.mirrored_y:
            frame_HWC = frame_HWC[::-1]
        return np.ascontiguousarray(frame_HWC)


def orientation_of(frame: Any) -> Orientation:
    """The orientation nearest to the display matrix of a PyAV frame; as stored without one."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y, with y downwards.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)
