"""Frames through PyAV (current FFmpeg): reads everything, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av

from metok_vllm.errors import MediaError
from metok_vllm.video.frame_index import FrameIndex, Origin, WrongIndexError
from metok_vllm.video.frames import Frame, Orientation, orientation_of
from metok_vllm.video.probing import VideoSource
from metok_vllm.video.walking import Walk, is_key, walking

# At least this many frames are compared with the index; fields and hidden frames show in fewer.
PROOF_FRAMES = 4


class PyAvReader:
    """VideoReader on PyAV: decodes from keyframes and compares the index with decoded frames."""

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._size: tuple[int, int] | None = None
        self._orientation = Orientation()

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """See VideoReader.frames."""
        index = self._source.index
        with walking(self._source) as walk:
            if index.origin is Origin.COUNTED:
                found = _find_by_count(walk, indices)
            else:
                found = _find_by_packet(walk, index, indices)
            for place, frame in found:
                yield place, self._to_rgb(frame)

    def _to_rgb(self, frame: Any) -> Frame:
        if self._size is None:
            self._size = (frame.width, frame.height)
            self._orientation = orientation_of(frame)
        width, height = self._size
        try:
            rgb = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            raise MediaError(
                "the pixel format of the video is not supported", "decode_failed"
            ) from None
        return self._orientation.upright(rgb)


def _find_by_count(walk: Walk, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    wanted = set(indices)
    for place, (_, frame) in enumerate(walk.frames()):
        if place in wanted:
            yield place, frame
        if place >= indices[-1]:
            return


def _find_by_packet(
    walk: Walk, index: FrameIndex, indices: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """The frames at `indices`; groups without any of them are skipped.

    Raises WrongIndexError where the decoded frames differ from the index. A frame may be missing
    only where the decoder reported damage; it is left out.
    """
    place_of = {number: place for place, number in enumerate(index.sources)}
    ahead = [(place, *index.start(place)) for place in reversed(indices)]
    wanted, _, start = ahead[-1]
    # Frames compared, the next expected frame, and the keyframe expected after a jump.
    shown = expected = 0
    landing: int | None = None
    if start > 0:
        walk.jump(start)
        landing = ahead[-1][1]
    for number, frame in walk.frames():
        place = place_of.get(number, -1)
        if landing is not None:
            if 0 <= place < landing:
                continue  # shown before the keyframe: may lack its references
            if place != landing or not is_key(frame):
                raise WrongIndexError
            expected, landing = place, None
        if place < expected or (place > expected and not walk.damaged):
            raise WrongIndexError
        shown += 1
        expected = place + 1
        if place < wanted:
            continue
        while ahead and ahead[-1][0] < place:
            ahead.pop()  # damaged: not decoded
        if ahead and ahead[-1][0] == place:
            yield place, frame
            ahead.pop()
        if ahead:
            wanted, key, start = ahead[-1]
            if start > walk.fed:
                walk.jump(start)
                landing = key
        elif shown >= PROOF_FRAMES:
            return
    # The end of the file.
    if landing is not None or (expected < index.total and not walk.damaged):
        raise WrongIndexError
