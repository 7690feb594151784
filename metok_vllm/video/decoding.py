"""From the bytes of one video to its sampled frames, inside a decode worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import BinaryIO, Protocol

import numpy as np

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.channel import write_all
from metok_vllm.video.frame_index import Origin, WrongIndexError
from metok_vllm.video.frames import Decoded, Frame, sample_indices
from metok_vllm.video.limits import MediaLimits, Transport, flag_of
from metok_vllm.video.probing import VideoSource, inspect
from metok_vllm.video.pyav_reader import PyAvReader
from metok_vllm.video.walking import check_walk, with_decoded_index, without_broken_end

# More threads hardly speed up one video and multiply the decoder's memory.
MAX_THREADS = 4


class VideoReader(Protocol):
    """Decodes chosen frames of one probed video. Every backend gives the same pixels."""

    def __init__(self, source: VideoSource) -> None:
        """Raises MediaError(decode_failed) for a video that this backend cannot read exactly."""

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """(index, upright RGB frame [H, W, 3]) for rising `indices`, all of one size.

        Frames that are too damaged to decode are left out. Raises WrongIndexError, possibly after
        some frames, where the video has other frames than its index.
        """


def reader_of(backend: str) -> tuple[str, type[VideoReader]]:
    """Name and reader; `backend` as in MediaLimits.backend.

    `auto` is PyAV: it reads everything that decord does and more, and is faster. 64 frames of a
    minute of 320 x 240 take 41 ms (decord: 60), of 1280 x 720 1.3 s (1.6), on one core, H.264.
    Raises MediaError where decord is chosen and not installed.
    """
    if backend != "decord":
        return "pyav", PyAvReader
    if find_spec("decord") is None:
        raise MediaError("the decord backend is not installed", "decode_failed")
    from metok_vllm.video.decord_reader import DecordReader

    return "decord", DecordReader


def decode(
    video: BinaryIO,
    num_frames: int,
    fps: float,
    limits: MediaLimits,
    output: BinaryIO,
    transport: Transport = Transport.DATA,
) -> Decoded:
    """Probe `video`, sample and decode it, and write uint8 [T, H, W, 3] to `output`.

    Raises MediaError and MediaTooLargeError as `probe` does, and MediaError(decode_failed).
    """
    started = time.monotonic()
    threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // limits.decode_workers))
    source = inspect(video, limits, threads, transport)
    if source.packets.broken_off:
        source = without_broken_end(source)
    if source.packets.unsure:
        source = with_decoded_index(source, source.packets.unsure)
    name, reader_type = reader_of(limits.backend)
    while True:
        index = source.index
        indices = sample_indices(index.total, num_frames, fps, index.duration_s)
        walked = index.walked(indices)
        check_walk(walked, walked * source.probe.width * source.probe.height, limits)
        try:
            written, shape, downscale = _write_frames(reader_type, source, indices, limits, output)
            break
        except WrongIndexError:
            output.seek(0)
            output.truncate()
        if index.origin is Origin.PACKETS:
            source = with_decoded_index(source, len(source.packets))
        else:
            source = replace(source, index=replace(index, origin=Origin.COUNTED))
    return Decoded(
        shape=shape,
        indices=written,
        timestamps_s=[index.timestamp_s(i) for i in written],
        fps=index.fps,
        duration_s=index.duration_s,
        total_frames=index.total,
        backend=name,
        downscale=downscale,
        decode_s=time.monotonic() - started,
    )


def _write_frames(
    reader_type: type[VideoReader],
    source: VideoSource,
    indices: Sequence[int],
    limits: MediaLimits,
    output: BinaryIO,
) -> tuple[list[int], tuple[int, int, int, int], int]:
    """Indices written, shape [T, H, W, 3] of the output, and the downscale factor."""
    written: list[int] = []
    height = width = 0
    factor = 1
    for index, frame_HWC in reader_type(source).frames(indices):
        if not written:
            height, width = frame_HWC.shape[:2]
            factor = fitting_factor(len(indices), height, width, limits.max_decoded_bytes)
            height, width = height // factor, width // factor
        write_all(output, shrink(frame_HWC, factor).data)
        written.append(index)
    if not written:
        raise MediaError("no frame of the video can be decoded", "decode_failed")
    return written, (len(written), height, width, 3), factor


def fitting_factor(num_frames: int, height: int, width: int, max_bytes: int) -> int:
    """`downscale_factor`; raises MediaTooLargeError where even one pixel a frame is too much."""
    factor = downscale_factor(num_frames, height, width, max_bytes)
    if num_frames * (height // factor) * (width // factor) * 3 > max_bytes:
        raise MediaTooLargeError(
            f"{num_frames} frames of {width} x {height} pixels cannot be scaled down to "
            f"{max_bytes} bytes ({flag_of('max_decoded_bytes')})",
            "too_many_pixels",
        )
    return factor


def downscale_factor(num_frames: int, height: int, width: int, max_bytes: int) -> int:
    """Smallest whole factor that makes all frames fit; at most the shorter side in pixels."""
    factor = 1
    while (
        num_frames * (height // factor) * (width // factor) * 3 > max_bytes
        and min(height, width) // (factor + 1) > 0
    ):
        factor += 1
    return factor


def shrink(frame_HWC: Frame, factor: int) -> Frame:
    """Mean over blocks of factor x factor pixels; a remainder at the right and bottom is cut."""
    if factor == 1:
        return np.ascontiguousarray(frame_HWC)
    height, width = frame_HWC.shape[0] // factor, frame_HWC.shape[1] // factor
    area = factor * factor
    # Sums of whole slices are many times faster than numpy's sum over short axes.
    wide = np.uint16 if area * 255 + area // 2 < 1 << 16 else np.uint32
    blocks = frame_HWC[: height * factor, : width * factor]
    lines = blocks.reshape(height, factor, width * factor * 3)
    line_sums = np.zeros((height, width * factor * 3), wide)
    for row in range(factor):
        line_sums += lines[:, row]
    columns = line_sums.reshape(height, width, factor, 3)
    total = np.full((height, width, 3), area // 2, wide)
    for column in range(factor):
        total += columns[:, :, column]
    mean: Frame = (total // wide(area)).astype(np.uint8)
    return mean
