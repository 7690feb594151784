"""The sampling rule, against vLLM's own, and the eight display matrices."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.multimodal.video import VideoBackend
from vllm.multimodal.video_decoders.base import VideoSourceMetadata, VideoTargetMetadata

from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, read_video, sample_indices
from tests.video import clips

# a, b, c, d of x' = a x + c y, y' = b x + d y, and what that does to a frame [H, W, 3].
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[clips.Frames], clips.Frames]]] = {
    "as stored": ((1, 0, 0, 1), lambda frame: frame),
    "turned 90": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "turned 180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "turned 270": ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
    "left to right": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "top to bottom": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    "other diagonal": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).transpose(1, 0, 2)),
}


def with_matrix(data: bytes, scale: int, abcd: tuple[int, int, int, int]) -> bytes:
    """The mp4 with this display matrix."""
    a, b, c, d = (scale * value for value in abcd)
    start = data.index(b"tkhd") + 44
    return data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :]


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(num_frames=4, size=(96, 64))


@pytest.mark.parametrize("scale", [1 << 16, 1 << 15])
@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_upright(mp4: bytes, name: str, scale: int) -> None:
    abcd, show = MATRICES[name]
    stored_THWC = read_video(mp4, 2).frames_THWC
    shown_THWC = read_video(with_matrix(mp4, scale, abcd), 2).frames_THWC
    np.testing.assert_array_equal(shown_THWC, [show(frame) for frame in stored_THWC])


def test_a_matrix_of_zeros_changes_nothing(mp4: bytes) -> None:
    shown_THWC = read_video(with_matrix(mp4, 0, (1, 0, 0, 1)), 2).frames_THWC
    np.testing.assert_array_equal(shown_THWC, read_video(mp4, 2).frames_THWC)


@pytest.mark.parametrize("name", ["left to right", "transposed"])
def test_decord_refuses_mirrors(mp4: bytes, name: str) -> None:
    data = with_matrix(mp4, 1 << 16, MATRICES[name][0])
    with pytest.raises(MediaError, match="decord does not read mirrored videos"):
        read_video(data, 2, limits=MediaLimits(backend="decord"))


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
