"""How many frames of a video are sampled: for a whole request, and for one video of it."""

from __future__ import annotations

import copy
import os
from typing import Any

from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.engine.video_loader import NAME
from metok_vllm.errors import ConfigError
from metok_vllm.video.limits import MediaLimits, flag_of

MIN_FPS, MAX_FPS = 0.001, 1000


def video_options(chosen: dict[str, Any], limits: MediaLimits) -> dict[str, Any]:
    """Options of vLLM's video reader, within the limits. Raises ConfigError naming the field."""
    options = dict(chosen)
    fps = options.get("fps", -1)
    if not _is_frame_rate(fps):
        raise ConfigError(
            f"video.fps must be a number from {MIN_FPS} to {MAX_FPS}, or -1 for no rate",
            "media_io_kwargs.video.fps",
        )
    # With a frame rate, num_frames is only a cap.
    frames = options.get("num_frames", limits.max_frames if fps > 0 else limits.default_frames)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames == 0 or frames < -1:
        raise ConfigError(
            f"video.num_frames must be 1 to {limits.max_frames}", "media_io_kwargs.video.num_frames"
        )
    if frames > limits.max_frames:
        raise ConfigError(
            f"video.num_frames is over {limits.max_frames}, the most frames this server samples "
            f"({flag_of('max_frames')})",
            "media_io_kwargs.video.num_frames",
        )
    options["num_frames"] = limits.max_frames if frames == -1 else frames
    if os.environ.get("VLLM_VIDEO_LOADER_BACKEND") == NAME:
        # Otherwise vLLM picks a loader by processor, which ignores the media limits.
        options.setdefault("video_backend", NAME)
    return options


def resampled(media_io: VideoMediaIO, chosen: dict[str, Any], limits: MediaLimits) -> VideoMediaIO:
    """vLLM's video reader with the `num_frames` or `fps` of one video. Raises ConfigError."""
    try:
        options = video_options(chosen, limits)
    except ConfigError as error:
        raise ConfigError(str(error), "video_url") from None
    media_io = copy.copy(media_io)
    media_io.num_frames = options["num_frames"]
    # As in vLLM, one of the two replaces both of the request.
    media_io.kwargs = {**media_io.kwargs, "fps": options.get("fps", -1)}
    return media_io


def _is_frame_rate(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == -1 or MIN_FPS <= value <= MAX_FPS
