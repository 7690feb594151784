"""Lists of encoded frames, and single images, read by the decode workers that read videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.channel import anonymous_file, write_all
from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.pool import POOL, Job
from metok_vllm.video.probing import check_size
from metok_vllm.video.reading import bounded, received

# Formats with well-maintained decoders. Pillow's others run programs (EPS), hold many pictures
# (PSD, ICO, FLI) or long tables (TIFF), or are rare.
FRAME_FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_FORMATS = (*FRAME_FORMATS, "GIF", "BMP")
WHITE = (255, 255, 255)


def read_frame_list(
    frames: Sequence[bytes], limits: MediaLimits, background: Sequence[int] = WHITE
) -> VideoFrames:
    """The frames of a video that is sent as pictures of one size. Raises as `read_video` does."""
    if len(frames) > limits.max_frames:
        raise too_many_frames(len(frames), limits)
    if not frames or not all(frames):
        raise MediaError("a frame of the list is empty (0 bytes)", "empty")
    check_size(sum(map(len, frames)), limits)
    return _read(frames, bounded(limits, len(frames)), FRAME_FORMATS, background, "frame")


def read_image(data: bytes, limits: MediaLimits, background: Sequence[int] = WHITE) -> VideoFrames:
    """One image in RGB, upright, not scaled down. Raises as `read_video` does."""
    if not data:
        raise MediaError("the image is empty (0 bytes)")
    most_bytes = min(3 * limits.max_frame_pixels, limits.max_pending_bytes)
    limits = replace(limits, max_decoded_bytes=most_bytes)
    return _read([data], limits, IMAGE_FORMATS, background, "image")


def too_many_frames(count: int, limits: MediaLimits) -> MediaTooLargeError:
    """The error for a frame list that is too long."""
    return MediaTooLargeError(
        f"the video has {count} frames; this server takes {limits.max_frames} at most "
        f"({flag_of('max_frames')})",
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
    request = {
        "sizes": [len(picture) for picture in pictures],
        "formats": list(formats),
        "background": list(background),
        "what": what,
    }
    with anonymous_file() as file:
        for picture in pictures:
            write_all(file, picture)
        job = Job(
            request,
            file,
            count,
            limits.max_decoded_bytes,
            limits,
            partial(received, num_frames=count),
            what="list of frames" if what == "frame" else what,
            kept=what == "frame",
        )
        return POOL.run(job)
