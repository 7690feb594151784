"""Checks pictures by their headers, before anything is decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from metok_vllm.errors import MediaError, MediaTooLarge
from metok_vllm.video.frame_list import IMAGE_FORMATS
from metok_vllm.video.limits import MediaLimits


def check_image(data: bytes, limits: MediaLimits) -> tuple[int, int]:
    """Width and height. Raises MediaTooLarge over the pixel limit, MediaError if not a picture."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb check: its limits are far above ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise MediaError("the image cannot be read: it is damaged or of an unknown kind") from None
    if width * height > limits.max_frame_pixels:
        raise _too_many_pixels(limits)
    return width, height


def _too_many_pixels(limits: MediaLimits) -> MediaTooLarge:
    return MediaTooLarge(
        f"a picture is over the limit of {limits.max_frame_pixels} pixels", "too_many_pixels"
    )
