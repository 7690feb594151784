"""`read_video`: the way from a client's bytes to frames that the server can trust."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video.channel import ChannelClosedError, anonymous_file, contents, write_all
from metok_vllm.video.frame_cache import FRAMES, FrameKey
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import Reservation
from metok_vllm.video.pool import POOL, Job
from metok_vllm.video.probing import check_size
from metok_vllm.video.replies import decoded_of
from metok_vllm.video.requester import current


def read_video(
    data: bytes, num_frames: int, fps: float = -1, limits: MediaLimits | None = None
) -> VideoFrames:
    """Sample `num_frames` frames of a video in memory, as `sample_indices` does.

    `num_frames` <= 0 means as many as `limits.max_frames` allows; `limits` default to those of
    the environment. The video is opened in another process only. Thread-safe. The frames count
    against `limits.max_pending_bytes` until they and all views of them are gone. With
    `limits.frame_cache_bytes` they are kept, and given out again as `cached`: write to none. Raises
    MediaError (with `reason`) for what cannot be read, MediaTooLargeError over a limit,
    MediaDeadlineError after `limits.decode_deadline_s` of decoding, MediaBusyError after as long of
    waiting.
    """
    limits = MediaLimits.from_env() if limits is None else limits
    if num_frames > limits.max_frames:
        raise MediaTooLargeError(
            f"{num_frames} frames of a video were asked for; "
            f"this server samples at most {limits.max_frames}",
            "too_many_frames",
        )
    check_size(len(data), limits)
    num_frames = num_frames if num_frames > 0 else limits.max_frames
    limits = bounded(limits, num_frames)
    if not limits.frame_cache_bytes:
        return _read(data, num_frames, fps, limits)
    key = FrameKey.of(data, num_frames, fps, limits, current().tenant)
    video = FRAMES.find(key)
    if video is None:
        video = _read(data, num_frames, fps, limits)
        FRAMES.keep(key, video, limits.frame_cache_bytes)
    return video


def bounded(limits: MediaLimits, num_frames: int) -> MediaLimits:
    """Limits whose `max_decoded_bytes` is what `num_frames` frames may have in this request.

    All videos of the request together must fit the memory that there is for decoded ones.
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
    """Frames out of a worker's reply, in memory that counts as long as they or views of them last.

    Raises the MediaError that the worker tells, ChannelClosedError for what it made up.
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


def _read(data: bytes, num_frames: int, fps: float, limits: MediaLimits) -> VideoFrames:
    def take(reply: dict[str, Any], file: BinaryIO | None, memory: Reservation) -> VideoFrames:
        return received(reply, file, memory, num_frames)

    with anonymous_file() as video:
        write_all(video, data)
        request = {"num_frames": num_frames, "fps": fps}
        return POOL.run(Job(request, video, num_frames, limits.max_decoded_bytes, limits, take))
