"""Frames through PyAV (current FFmpeg): reads everything, exactly."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import av
import numpy as np

from metok_vllm.errors import MediaError
from metok_vllm.video.probing import VideoSource, decoder_pixels, open_container, video_stream
from metok_vllm.video.reader import Frame


class SeekedTooFarError(Exception):
    """The container's seek landed behind the frame that was asked for."""


class PyAvReader:
    """VideoReader on PyAV: seeks by keyframe and finds frames by their presentation time."""

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._size: tuple[int, int] | None = None

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """See VideoReader.frames."""
        left = list(indices)
        may_seek = self._source.index.timed
        while True:
            try:
                for index, frame in self._find(left, may_seek):
                    yield index, self._to_rgb(frame)
                    left = left[left.index(index) + 1 :]
                return
            except SeekedTooFarError:
                may_seek = False

    def _find(self, indices: Sequence[int], may_seek: bool) -> Iterator[tuple[int, Any]]:
        source = self._source
        with open_container(source.file, source.max_frame_pixels) as container:
            stream = video_stream(container)
            context = stream.codec_context
            context.thread_type = "AUTO"
            context.thread_count = source.threads
            # A stream may change its size on the way: the decoder must refuse by itself.
            context.options = {"max_pixels": decoder_pixels(source.max_frame_pixels)}
            if source.index.timed:
                yield from self._find_by_time(container, stream, indices, may_seek)
            else:
                yield from _find_by_count(container, stream, indices)

    def _find_by_time(
        self, container: Any, stream: Any, indices: Sequence[int], may_seek: bool
    ) -> Iterator[tuple[int, Any]]:
        index = self._source.index
        position = 0
        while position < len(indices):
            key = index.keyframe_before(index.pts[indices[position]]) if may_seek else None
            if key is not None:
                container.seek(key, stream=stream, backward=True)
            first = True
            jump = False
            with closing(_decode(container, stream)) as frames:
                for frame in frames:
                    if frame.pts is None:
                        continue
                    while position < len(indices) and index.pts[indices[position]] < frame.pts:
                        if first and key is not None:
                            raise SeekedTooFarError
                        position += 1  # damaged: the decoder gave no frame of this time
                    first = False
                    if position < len(indices) and index.pts[indices[position]] == frame.pts:
                        yield indices[position], frame
                        position += 1
                    if position == len(indices):
                        return
                    following = index.keyframe_before(index.pts[indices[position]])
                    # Some containers seek to well before the keyframe: ask for each only once.
                    jump = (
                        may_seek
                        and following is not None
                        and following > frame.pts
                        and (key is None or following > key)
                    )
                    if jump:
                        break
            if not jump:
                return

    def _to_rgb(self, frame: Any) -> Frame:
        if self._size is None:
            self._size = (frame.width, frame.height)
        width, height = self._size
        try:
            rgb = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            raise MediaError(
                "the pixel format of the video is not supported", "decode_failed"
            ) from None
        turns = round(frame.rotation / 90) % 4
        rgb_HWC: Frame = np.ascontiguousarray(np.rot90(rgb, turns))
        return rgb_HWC


def _find_by_count(
    container: Any, stream: Any, indices: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    wanted = set(indices)
    for number, frame in enumerate(_decode(container, stream)):
        if number in wanted:
            yield number, frame
        if number >= indices[-1]:
            return


def _decode(container: Any, stream: Any) -> Generator[Any, None, None]:
    """Decoded frames from where the container stands to its readable end."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue
    except MemoryError:
        raise
    except (av.FFmpegError, OSError):
        return  # cut off here: what was decoded is what there is
