"""What a decoding backend is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from metok_vllm.video.probing import VideoSource

Frame = npt.NDArray[np.uint8]


class VideoReader(Protocol):
    """Decodes chosen frames of one probed video. Every backend gives the same pixels."""

    def __init__(self, source: VideoSource) -> None:
        """Raises MediaError(decode_failed) for a video that this backend cannot read exactly."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """(index, RGB frame[H, W, 3]) for rising `indices`, all of one size, upright.

        Frames that are too damaged to decode are left out. Raises WrongIndexError, perhaps late,
        where the video proves to have other frames than its index.
        """
        ...
