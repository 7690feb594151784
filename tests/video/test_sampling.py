"""The sampling rule, against vLLM's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.multimodal.video import VideoBackend
from vllm.multimodal.video_decoders.base import VideoSourceMetadata, VideoTargetMetadata

from metok_vllm.video import sample_indices


@given(
    total=st.integers(1, 20_000),
    num_frames=st.integers(-1, 300),
    fps=st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 2.0, 29.97]),
    duration_s=st.floats(0, 1000),
)
def test_same_frames_as_vllm(total: int, num_frames: int, fps: float, duration_s: float) -> None:
    expected = VideoBackend.compute_frames_index_to_sample(
        VideoSourceMetadata(total, 25.0, duration_s),
        VideoTargetMetadata(num_frames, fps, 300.0),
    )
    assert sample_indices(total, num_frames, fps, duration_s) == expected


def test_small_cases() -> None:
    assert sample_indices(10, 4) == [0, 3, 6, 9]
    assert sample_indices(3, 8) == [0, 1, 2]
    assert sample_indices(100, 1) == [0]
    assert sample_indices(100, 32, fps=1, duration_s=4.9) == [0, 33, 66, 99]


def test_nothing_to_sample_from() -> None:
    with pytest.raises(ValueError, match="got 0"):
        sample_indices(0, 4)
