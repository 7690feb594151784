"""Images and lists of frames for vLLM, decoded as METok decodes videos, and by its limits."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.errors import MediaError
from metok_vllm.video.frame_list import read_frame_list, read_image
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import current

FRAME_LIST = "video/jpeg"
IMAGE_MODE = "RGB"


class _NoPixels:
    """Stands where vLLM decodes a frame of a list: it counts them, and they are decoded here."""

    def load_base64(self, media_type: str, data: str) -> Any:
        """A picture without pixels."""
        return np.empty(0, np.uint8)


def load_frame_list(
    frames: Sequence[bytes], media_io: VideoMediaIO, limits: MediaLimits
) -> MediaWithBytes[Any]:
    """What vLLM makes of a list of encoded frames: the frames, and its metadata of them."""
    counting = copy.copy(media_io)
    counting.image_io, counting.num_frames = _NoPixels(), len(frames)
    try:
        _, metadata = counting.load_base64(FRAME_LIST, "," * (len(frames) - 1)).media
    except ValueError:
        raise MediaError("what the request says of the frames does not fit their list") from None
    image_io = media_io.image_io
    video = read_frame_list(frames, limits, image_io.rgba_background_color)
    if current().tenant:
        # vLLM hashes the metadata, so that its caches keep the media of tenants apart.
        metadata["tenant"] = current().tenant
    return MediaWithBytes((video.frames_THWC, metadata), _identity(frames))


def load_image(data: bytes, media_io: ImageMediaIO, limits: MediaLimits) -> MediaWithBytes[Any]:
    """What vLLM makes of an image, which is to be in RGB."""
    background = media_io.rgba_background_color
    pixels_THWC = read_image(data, limits, background).frames_THWC
    io_config = {"image_mode": IMAGE_MODE, "rgba_background_color": background}
    if current().tenant:
        io_config["tenant"] = current().tenant
    return MediaWithBytes(Image.fromarray(pixels_THWC[0]), data, io_config)


def _identity(frames: Sequence[bytes]) -> bytes:
    """Stands for the encoded frames in vLLM's hashes, without a copy of them all."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "big"))
        digest.update(frame)
    return digest.digest()
