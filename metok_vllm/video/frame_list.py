"""Lists of encoded frames, and single images, read as videos are: in a decode worker, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.channel import anonymous_file, write_all
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import Reservation
from metok_vllm.video.pool import POOL, Job
from metok_vllm.video.probing import check_size
from metok_vllm.video.reading import bounded, received

# Decoded in process by well-kept libraries. Pillow's other formats call programs (EPS), hold whole
# scenes (PSD, ICO, FLI) or long tables (TIFF), or nobody sends them.
FRAME_FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_FORMATS = (*FRAME_FORMATS, "GIF", "BMP")
WHITE = (255, 255, 255)


def read_frame_list(
    frames: Sequence[bytes], limits: MediaLimits, background: Sequence[int] = WHITE
) -> VideoFrames:
    """The frames of a video that was sent as pictures, all of one size, as `read_video` gives them.

    Raises as `read_video` does.
    """
    if len(frames) > limits.max_frames:
        raise too_many_frames(len(frames), limits)
    if not frames or not all(frames):
        raise MediaError("a frame of the list is empty (0 bytes)", "empty")
    check_size(sum(map(len, frames)), limits)
    return _read(frames, bounded(limits, len(frames)), FRAME_FORMATS, background, "frame")


def read_image(data: bytes, limits: MediaLimits, background: Sequence[int] = WHITE) -> VideoFrames:
    """One image in RGB, upright, in its own size. Raises as `read_video` does."""
    if not data:
        raise MediaError("the image is empty (0 bytes)")
    most_bytes = min(3 * limits.max_frame_pixels, limits.max_pending_bytes)
    limits = replace(limits, max_decoded_bytes=most_bytes)
    return _read([data], limits, IMAGE_FORMATS, background, "image")


def too_many_frames(count: int, limits: MediaLimits) -> MediaTooLargeError:
    """The refusal of a frame list that is too long."""
    return MediaTooLargeError(
        f"the video has {count} frames; this server takes {limits.max_frames} at most",
        "too_many_frames",
    )


def _read(
    pictures: Sequence[bytes],
    limits: MediaLimits,
    formats: Sequence[str],
    background: Sequence[int],
    what: str,
) -> VideoFrames:
    count = len(pictures)

    def take(reply: dict[str, Any], file: BinaryIO | None, memory: Reservation) -> VideoFrames:
        return received(reply, file, memory, count)

    request = {
        "sizes": [len(picture) for picture in pictures],
        "formats": list(formats),
        "background": list(background),
        "what": what,
    }
    with anonymous_file() as file:
        for picture in pictures:
            write_all(file, picture)
        is_list = what == "frame"
        called = "list of frames" if is_list else what
        most_bytes = limits.max_decoded_bytes
        return POOL.run(Job(request, file, count, most_bytes, limits, take, called, is_list))
