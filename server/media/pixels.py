"""Checks pictures by their headers, before anything is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from metok_vllm.errors import MediaError, MediaTooLarge
from metok_vllm.video.limits import MediaLimits

RGB_BYTES = 3


def check_image(data: bytes, limits: MediaLimits) -> tuple[int, int]:
    """Width and height. Raises MediaTooLarge over the pixel limit, MediaError if not a picture."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb check: its limits are far above ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise MediaError("the image cannot be read: it is damaged or of an unknown kind") from None
    if width * height > limits.max_frame_pixels:
        raise _too_many_pixels(limits)
    return width, height


def check_frames(frames: Sequence[bytes], limits: MediaLimits) -> int:
    """Bytes that a list of frames decodes to. Raises as check_image does."""
    if len(frames) > limits.max_frames:
        raise too_many_frames(len(frames), limits)
    sizes = {check_image(frame, limits) for frame in frames}
    if len(sizes) > 1:
        raise MediaError("the frames of a video must all have the same size")
    width, height = sizes.pop()
    num_bytes = width * height * RGB_BYTES * len(frames)
    if num_bytes > limits.max_pending_bytes:
        raise MediaTooLarge(
            f"the frames have {num_bytes} bytes once decoded; this server takes "
            f"{limits.max_pending_bytes} at most"
        )
    return num_bytes


def too_many_frames(count: int, limits: MediaLimits) -> MediaTooLarge:
    """The refusal of a frame list that is too long."""
    return MediaTooLarge(
        f"the video has {count} frames; this server takes {limits.max_frames} at most",
        "too_many_frames",
    )


def _too_many_pixels(limits: MediaLimits) -> MediaTooLarge:
    return MediaTooLarge(
        f"a picture is over the limit of {limits.max_frame_pixels} pixels", "too_many_pixels"
    )
