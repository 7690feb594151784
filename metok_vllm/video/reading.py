"""`read_video`: the way from a client's bytes to frames that the server can trust."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np

from metok_vllm import errors
from metok_vllm.errors import MediaError, MediaTooLarge
from metok_vllm.video.channel import ChannelClosedError, anonymous_file, contents, write_all
from metok_vllm.video.frame_cache import FRAMES, FrameKey
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import MEMORY, Reservation
from metok_vllm.video.pool import POOL
from metok_vllm.video.probing import check_size


def read_video(
    data: bytes, num_frames: int, fps: float = -1, limits: MediaLimits | None = None
) -> VideoFrames:
    """Sample `num_frames` frames of a video in memory, as `sample_indices` does.

    `num_frames` <= 0 means as many as `limits.max_frames` allows; `limits` default to those of
    the environment. The video is opened in another process only. Thread-safe. The frames count
    against `limits.max_pending_bytes` until they and all views of them are gone. With
    `limits.frame_cache_bytes` they are kept, and given out again as `cached`: write to none. Raises
    MediaError (with `reason`) for what cannot be read, MediaTooLarge for what is over a limit,
    MediaDeadline after `limits.decode_deadline_s` of decoding, or of waiting for memory.
    """
    limits = MediaLimits.from_env() if limits is None else limits
    if num_frames > limits.max_frames:
        raise MediaTooLarge(
            f"{num_frames} frames of a video were asked for; "
            f"this server samples at most {limits.max_frames}",
            "too_many_frames",
        )
    check_size(len(data), limits)
    num_frames = num_frames if num_frames > 0 else limits.max_frames
    most_bytes = min(
        num_frames * limits.max_frame_pixels * 3,
        limits.max_decoded_bytes,
        limits.max_pending_bytes,
    )
    limits = replace(limits, max_decoded_bytes=most_bytes)
    if not limits.frame_cache_bytes:
        return _reserve_and_read(data, num_frames, fps, limits)
    key = FrameKey.of(data, num_frames, fps, limits)
    video = FRAMES.find(key)
    if video is None:
        video = _reserve_and_read(data, num_frames, fps, limits)
        FRAMES.keep(key, video, limits.frame_cache_bytes)
    return video


def _reserve_and_read(data: bytes, num_frames: int, fps: float, limits: MediaLimits) -> VideoFrames:
    with MEMORY.reserve(
        limits.max_decoded_bytes, limits.max_pending_bytes, limits.decode_deadline_s
    ) as memory:
        return _read(data, num_frames, fps, limits, memory)


def _read(
    data: bytes, num_frames: int, fps: float, limits: MediaLimits, memory: Reservation
) -> VideoFrames:
    request = {"num_frames": num_frames, "fps": fps, "limits": asdict(limits)}
    with anonymous_file() as video:
        write_all(video, data)
        reply, output = POOL.call(request, video, limits.decode_workers, limits.decode_deadline_s)
    if output is None:
        raise _error(reply["error"])
    decoded = reply["decoded"]
    with output:
        num_bytes = math.prod(decoded["shape"])
        try:
            if not 0 < num_bytes <= memory.num_bytes:
                raise ChannelClosedError
            owner = contents(output, num_bytes)
        except ChannelClosedError:
            raise MediaError("the decoder crashed on the video", "decode_failed") from None
    memory.hand_over(owner, num_bytes)
    frames_THWC = np.frombuffer(owner, np.uint8).reshape(decoded["shape"])
    return VideoFrames(frames_THWC=frames_THWC, **decoded)


def _error(described: dict[str, str]) -> MediaError:
    error_type = getattr(errors, described["type"])
    assert issubclass(error_type, MediaError), described["type"]
    error: MediaError = error_type(described["message"], described["reason"])
    return error
