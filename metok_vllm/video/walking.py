"""Decoding a video forwards: all packets, or from keyframe to keyframe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import av

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.frame_index import FrameIndex
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.packets import packets_of
from metok_vllm.video.probing import (
    VideoSource,
    check_duration,
    decoder_pixels,
    open_container,
    video_stream,
)


class Walk:
    """Decodes one stream once from its start, without the packets that `jump` skips.

    A frame is identified by the number of its packet, which passes through the decoder in place of
    the packet's time: times repeat, go back and are missing.
    """

    def __init__(self, container: Any, source: VideoSource) -> None:
        self._stream = video_stream(container)
        self._container = container
        self._limits = source.limits
        context = self._context = self._stream.codec_context
        context.thread_type = "AUTO"
        context.thread_count = source.threads
        # Frames may grow inside a stream, so the decoder checks each.
        context.options = {"max_pixels": decoder_pixels(source.limits.max_frame_pixels)}
        self._start = 0
        self._frames = 0
        self._pixels = 0
        # Number of the last decoded packet.
        self.fed = -1
        # Packets that failed to decode since the last jump.
        self.damaged = 0

    def jump(self, number: int) -> None:
        """Continue at the later packet `number`."""
        assert number > self.fed, f"packet {number} lies behind {self.fed}"
        self._context.flush_buffers()
        self._start = number
        self.damaged = 0

    def frames(self) -> Iterator[tuple[int, Any]]:
        """(packet number, frame) as shown, to the readable end. Raises MediaTooLargeError."""
        for number, packet in packets_of(self._container, self._stream):
            if number < self._start:
                continue
            self.fed = number
            packet.pts, packet.dts = number, None
            for frame in self._decode(packet):
                yield frame.pts, frame
                if self._start > number:
                    break
        yield from ((frame.pts, frame) for frame in self._decode(None))

    def _decode(self, packet: Any) -> list[Any]:
        try:
            frames: list[Any] = self._context.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            self.damaged += 1
            return []
        for frame in frames:
            self._frames += 1
            self._pixels += frame.width * frame.height
        check_walk(self._frames, self._pixels, self._limits)
        return frames


@contextmanager
def walking(source: VideoSource) -> Iterator[Walk]:
    """A Walk from the start of the video."""
    with open_container(source.file, source.limits.max_frame_pixels) as container:
        yield Walk(container, source)


def with_decoded_index(source: VideoSource, until: int) -> VideoSource:
    """The source with an index of the frames that the packets before `until` decode to.

    Raises MediaTooLargeError where that is too much to decode, MediaError for a video without
    frames.
    """
    probe = source.probe
    check_walk(until, until * probe.width * probe.height, source.limits)
    decoded: list[int] = []
    keys: list[int] = []
    with walking(source) as walk:
        for number, frame in walk.frames():
            if number is None or number >= until:
                if number == until:
                    break
                continue
            decoded.append(number)
            if is_key(frame):
                keys.append(number)
    return _with_index(source, FrameIndex.of(source.packets, decoded, keys, until))


def without_broken_end(source: VideoSource) -> VideoSource:
    """The source without its last packet, where the file ends inside it and it does not decode.

    Later decoding uses one thread: PyAV loses frames of other threads at a damaged end.
    """
    source = replace(source, threads=1)
    packets = source.packets
    last = len(packets) - 1
    # Start one keyframe early: frames shown before a keyframe reference the group before it.
    start = packets.keys[-2] if len(packets.keys) > 1 else 0
    probe = source.probe
    check_walk(last - start, (last - start) * probe.width * probe.height, source.limits)
    with walking(source) as walk:
        if start:
            walk.jump(start)
        if last in (number for number, _ in walk.frames()):
            return source
    packets = replace(packets, hidden=packets.hidden | {last})
    return _with_index(replace(source, packets=packets), FrameIndex.of(packets))


def _with_index(source: VideoSource, index: FrameIndex) -> VideoSource:
    if index.total == 0:
        raise MediaError("no frame of the video can be decoded", "decode_failed")
    check_duration(index, source.limits, source.transport)
    return replace(source, index=index)


def check_walk(frames: int, pixels: int, limits: MediaLimits) -> None:
    """Raise MediaTooLargeError for more frames or pixels than one sample may decode."""
    if frames > limits.max_walked_frames:
        reason = f"{frames} frames must be decoded; this server decodes at most "
        reason += f"{limits.max_walked_frames}"
        flag = flag_of("max_walked_frames")
    elif pixels > limits.max_walked_pixels:
        reason = f"{frames} frames of {pixels} pixels together must be decoded; "
        reason += f"this server decodes at most {limits.max_walked_pixels} pixels"
        flag = flag_of("max_walked_pixels")
    else:
        return
    raise MediaTooLargeError(
        f"to reach the frames sampled from the video, {reason} "
        f"({flag}; or encode it with more keyframes or smaller frames)",
        "too_many_frames_walked",
    )


def shown_first(source: VideoSource, count: int) -> tuple[Sequence[int], Any]:
    """Packet numbers of the first `count` decoded frames, and the first frame."""
    numbers: list[int] = []
    first = None
    with walking(source) as walk:
        for number, frame in walk.frames():
            first = first or frame
            numbers.append(number)
            if len(numbers) == count:
                break
    return numbers, first


def is_key(frame: Any) -> bool:
    """Whether the frame was decoded without references to others."""
    return bool(frame.key_frame) and frame.pict_type == av.video.frame.PictureType.I
