"""What a decoding backend is, and which one reads a given video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import numpy.typing as npt

from metok_vllm.errors import MediaError
from metok_vllm.video.probing import VideoSource

Frame = npt.NDArray[np.uint8]


class VideoReader(Protocol):
    """Decodes chosen frames of one probed video. Every backend gives the same pixels."""

    def __init__(self, source: VideoSource) -> None:
        """Raises MediaError(decode_failed) for a video that this backend cannot read exactly."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """(index, RGB frame[H, W, 3]) for rising `indices`, all of one size, upright.

        Frames that are too damaged to decode are left out.
        """
        ...


def reader_types(backend: str) -> list[tuple[str, type[VideoReader]]]:
    """(name, reader) in the order to try them; `backend` as in MediaLimits.backend."""
    from metok_vllm.video.pyav_reader import PyAvReader

    readers: list[tuple[str, type[VideoReader]]] = []
    if backend != "pyav":
        if find_spec("decord") is not None:
            from metok_vllm.video.decord_reader import DecordReader

            readers.append(("decord", DecordReader))
        elif backend == "decord":
            raise MediaError("the decord backend is not installed", "decode_failed")
    if backend != "decord":
        readers.append(("pyav", PyAvReader))
    return readers
