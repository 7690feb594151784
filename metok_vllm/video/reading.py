"""`read_video`: the way from a client's bytes to frames that the server can trust."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from metok_vllm import errors
from metok_vllm.errors import MediaError, MediaTooLarge
from metok_vllm.video.channel import ChannelClosedError, anonymous_file, read_into, write_all
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.pool import POOL
from metok_vllm.video.probing import check_size


@dataclass(frozen=True)
class VideoFrames:
    """Sampled frames of a video, uint8 RGB [T, H, W, 3], upright.

    `indices` and `timestamps_s` (seconds from the first frame) name the T frames; damaged ones
    are left out. `fps`, `duration_s` and `total_frames` are those of the whole video. `downscale`
    is the whole factor by which the frames were shrunk to fit `MediaLimits.max_decoded_bytes`.
    `decode_s` is the time the worker took.
    """

    frames_THWC: npt.NDArray[np.uint8]
    indices: list[int]
    timestamps_s: list[float]
    fps: float
    duration_s: float
    total_frames: int
    backend: str
    downscale: int
    decode_s: float


def read_video(
    data: bytes, num_frames: int, fps: float = -1, limits: MediaLimits | None = None
) -> VideoFrames:
    """Sample `num_frames` frames of a video in memory, as `sample_indices` does.

    `num_frames` <= 0 means as many as `limits.max_frames` allows; `limits` default to those of
    the environment. The video is opened in another process only. Thread-safe. Raises MediaError
    (with `reason`) for what cannot be read, MediaTooLarge for what is over a limit,
    MediaDeadline after `limits.decode_deadline_s`.
    """
    limits = MediaLimits.from_env() if limits is None else limits
    if num_frames > limits.max_frames:
        raise MediaTooLarge(
            f"{num_frames} frames of a video were asked for; "
            f"this server samples at most {limits.max_frames}",
            "too_many_frames",
        )
    check_size(len(data), limits)
    request = {
        "num_frames": num_frames if num_frames > 0 else limits.max_frames,
        "fps": fps,
        "limits": asdict(limits),
    }
    with anonymous_file() as video:
        write_all(video, data)
        reply, output = POOL.call(request, video, limits.decode_workers, limits.decode_deadline_s)
    if output is None:
        raise _error(reply["error"])
    decoded = reply["decoded"]
    with output:
        frames = np.empty(decoded.pop("shape"), dtype=np.uint8)
        try:
            read_into(output, frames.data)
        except ChannelClosedError:
            raise MediaError("the decoder crashed on the video", "decode_failed") from None
    return VideoFrames(frames_THWC=frames, **decoded)


def _error(described: dict[str, str]) -> MediaError:
    error_type = getattr(errors, described["type"])
    assert issubclass(error_type, MediaError), described["type"]
    error: MediaError = error_type(described["message"], described["reason"])
    return error
