"""Images and frame lists as vLLM expects them, decoded in METok's decode workers."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.frame_list import IMAGE_FORMATS, read_frame_list, read_image
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.requester import current

FRAME_LIST = "video/jpeg"
IMAGE_MODE = "RGB"


class _EmptyImageIO:
    """Replaces vLLM's image reader: vLLM counts the frames of a list, METok decodes them."""

    def load_base64(self, media_type: str, data: str) -> Any:
        """An image without pixels."""
        return np.empty(0, np.uint8)


def load_frame_list(
    frames: Sequence[bytes], media_io: VideoMediaIO, limits: MediaLimits
) -> MediaWithBytes[Any]:
    """A list of encoded frames as vLLM's video reader returns it: frames and metadata.

    Raises MediaError if the request's metadata does not fit the list, else as `read_frame_list`.
    """
    counter = copy.copy(media_io)
    counter.image_io, counter.num_frames = _EmptyImageIO(), len(frames)
    try:
        _, metadata = counter.load_base64(FRAME_LIST, "," * (len(frames) - 1)).media
    except ValueError:
        raise MediaError("the request's frame metadata does not fit its list of frames") from None
    image_io = media_io.image_io
    video = read_frame_list(frames, limits, image_io.rgba_background_color)
    if current().tenant:
        # vLLM hashes the metadata, so this separates tenants in its caches.
        metadata["tenant"] = current().tenant
    return MediaWithBytes((video.frames_THWC, metadata), _digest(frames))


def load_image(data: bytes, media_io: ImageMediaIO, limits: MediaLimits) -> MediaWithBytes[Any]:
    """An image as vLLM's reader returns it in RGB. Raises as `read_image`."""
    background = media_io.rgba_background_color
    pixels_THWC = read_image(data, limits, background).frames_THWC
    io_config = {"image_mode": IMAGE_MODE, "rgba_background_color": background}
    if current().tenant:
        io_config["tenant"] = current().tenant
    return MediaWithBytes(Image.fromarray(pixels_THWC[0]), data, io_config)


def check_image(data: bytes, limits: MediaLimits) -> None:
    """Check an image by its header, before vLLM decodes it.

    Raises MediaTooLargeError over the pixel limit, MediaError if it is not an image.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns far above the limit that is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                num_pixels = image.width * image.height
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise MediaError("the image cannot be read: it is damaged or of an unknown kind") from None
    if num_pixels > limits.max_frame_pixels:
        raise _too_many_pixels(limits)


def _too_many_pixels(limits: MediaLimits) -> MediaTooLargeError:
    return MediaTooLargeError(
        f"a picture is over the limit of {limits.max_frame_pixels} pixels "
        f"({flag_of('max_frame_pixels')})",
        "too_many_pixels",
    )


def _digest(frames: Sequence[bytes]) -> bytes:
    """A digest that vLLM hashes in place of a copy of all encoded frames."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "big"))
        digest.update(frame)
    return digest.digest()
