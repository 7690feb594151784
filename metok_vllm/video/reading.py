"""`read_video`: from a client's bytes to sampled frames, decoded in a worker process."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video.channel import ChannelClosedError, contents
from metok_vllm.video.frame_cache import FRAMES, FrameKey
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits, Transport, flag_of
from metok_vllm.video.memory import Reservation
from metok_vllm.video.pool import POOL, Job
from metok_vllm.video.probing import check_size
from metok_vllm.video.replies import decoded_of
from metok_vllm.video.requester import current
from metok_vllm.video.video_file import VideoFile, in_memory


def read_video(
    data: bytes | VideoFile, num_frames: int, fps: float = -1, limits: MediaLimits | None = None
) -> VideoFrames:
    """Sample `num_frames` frames of a video, by the rule of `sample_indices`.

    `num_frames` <= 0 means `limits.max_frames`; `limits` default to those of the environment. Only
    a worker process opens the video. Thread-safe. The frames count against
    `limits.max_pending_bytes` until they and all views of them are collected. With
    `limits.frame_cache_bytes` the frames are shared with later calls, so do not write to them.
    Raises MediaError (with `reason`) for what cannot be read, MediaTooLargeError over a limit,
    MediaDeadlineError after `limits.decode_deadline_s` of decoding, MediaBusyError after as long of
    waiting.
    """
    limits = MediaLimits.from_env() if limits is None else limits
    if num_frames > limits.max_frames:
        raise MediaTooLargeError(
            f"{num_frames} frames of a video were requested; "
            f"this server samples at most {limits.max_frames} ({flag_of('max_frames')})",
            "too_many_frames",
        )
    if isinstance(data, VideoFile):
        check_size(data.num_bytes, limits, data.transport)
    else:
        check_size(len(data), limits)
    num_frames = num_frames if num_frames > 0 else limits.max_frames
    limits = bounded(limits, num_frames)
    digest = _digest(data) if limits.frame_cache_bytes else None
    if digest is None:
        return _read(data, num_frames, fps, limits)
    key = FrameKey(digest, num_frames, fps, limits, current().tenant)
    video = FRAMES.find(key)
    if video is None:
        video = _read(data, num_frames, fps, limits)
        FRAMES.keep(key, video, limits.frame_cache_bytes)
    return video


def bounded(limits: MediaLimits, num_frames: int) -> MediaLimits:
    """Limits whose `max_decoded_bytes` bounds a sample of `num_frames` frames in this request.

    All videos of the request together fit into `max_pending_bytes`.
    """
    most_bytes = min(
        num_frames * limits.max_frame_pixels * 3,
        limits.max_decoded_bytes,
        max(1, limits.max_pending_bytes // max(1, current().videos)),
    )
    return replace(limits, max_decoded_bytes=most_bytes)


def received(
    reply: dict[str, Any], file: BinaryIO | None, memory: Reservation, num_frames: int
) -> VideoFrames:
    """The frames of a worker's reply; they stay reserved until they and their views are collected.

    Raises the MediaError that the worker reports, or ChannelClosedError for an invalid reply.
    """
    decoded = decoded_of(reply, file, num_frames)
    num_bytes = math.prod(decoded.shape)
    if num_bytes > memory.num_bytes:
        raise ChannelClosedError
    assert file is not None, "frames without a file"
    owner = contents(file, num_bytes)
    memory.hand_over(owner, num_bytes)
    frames_THWC = np.frombuffer(owner, np.uint8).reshape(decoded.shape)
    return VideoFrames(frames_THWC=frames_THWC, **vars(decoded))


def _digest(data: bytes | VideoFile) -> bytes | None:
    return data.digest() if isinstance(data, VideoFile) else hashlib.sha256(data).digest()


def _read(data: bytes | VideoFile, num_frames: int, fps: float, limits: MediaLimits) -> VideoFrames:
    if not isinstance(data, VideoFile):
        with in_memory(data, Transport.DATA) as video:
            return _read(video, num_frames, fps, limits)
    request = {"num_frames": num_frames, "fps": fps, "transport": data.transport.value}
    take = partial(received, num_frames=num_frames)
    return POOL.run(Job(request, data.file, num_frames, limits.max_decoded_bytes, limits, take))
