"""Which frames of a video are looked at."""

from __future__ import annotations

import math

import numpy as np


def sample_indices(
    total_frames: int, num_frames: int, fps: float = -1, duration_s: float = 0.0
) -> list[int]:
    """Indices of `num_frames` frames spread evenly over `total_frames`, first and last included.

    At most `fps` frames a second of `duration_s`, where `fps` is positive. `num_frames` <= 0
    means all of them. The same rule as vLLM's `VideoBackend.compute_frames_index_to_sample`
    (vllm/multimodal/video.py), so that our loader and vLLM's look at the same frames.
    """
    if total_frames < 1:
        raise ValueError(f"a video to sample from needs at least one frame, got {total_frames}")
    count = total_frames if num_frames <= 0 else min(num_frames, total_frames)
    if fps > 0:
        count = min(count, math.floor(duration_s * fps))
    count = max(1, count)
    indices: list[int] = np.linspace(0, total_frames - 1, count, dtype=int).tolist()
    return indices
