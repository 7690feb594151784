"""Pictures from encoded bytes to frames, as a decode worker does it: lists of frames, and images.

Each comes out as vLLM reads an image: the first frame of it, turned upright, over a background
where it is transparent, in RGB.
"""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.channel import write_all
from metok_vllm.video.decoding import downscale_factor, shrink
from metok_vllm.video.frames import Decoded, Frame
from metok_vllm.video.limits import MediaLimits

# A pixel of a JPEG or PNG takes about as long as so many of a video.
COST = 16
BAND_PIXELS = 1 << 18


def decode_pictures(
    file: BinaryIO, request: dict[str, Any], limits: MediaLimits, output: BinaryIO
) -> Decoded:
    """Write the pictures that `file` holds one after the other to `output`, as uint8 [T, H, W, 3].

    `request` has their `sizes` in bytes, the PIL `formats` allowed, the `background` colour and
    `what` one is called. Raises MediaError, and MediaTooLargeError before anything is decoded.
    """
    started = time.monotonic()
    sizes, what = request["sizes"], request["what"]
    file.seek(0)
    pictures = [file.read(size) for size in sizes]
    _check_headers(pictures, request, limits)
    size: tuple[int, int] | None = None
    factor = 1
    for picture in pictures:
        with _in_rgb(picture, request) as image:
            if size is None:
                size = image.size
                factor = _factor(len(sizes), *size, limits)
            if image.size != size:
                raise _sizes_differ()
            for band_HWC in _bands(image, factor):
                write_all(output, shrink(band_HWC, factor).data)
    if size is None:
        raise MediaError(f"there is no {what}", "empty")
    count = len(sizes)
    return Decoded(
        shape=(count, size[1] // factor, size[0] // factor, 3),
        indices=list(range(count)),
        timestamps_s=[float(index) for index in range(count)],
        fps=1.0,
        duration_s=float(count),
        total_frames=count,
        backend="pictures",
        downscale=factor,
        decode_s=time.monotonic() - started,
    )


def _check_headers(pictures: list[bytes], request: dict[str, Any], limits: MediaLimits) -> None:
    sizes = set()
    for picture in pictures:
        with _opened(picture, request) as image:
            sizes.add(image.size)
        if image.size[0] * image.size[1] > limits.max_frame_pixels:
            raise MediaTooLargeError(
                f"a picture is over the limit of {limits.max_frame_pixels} pixels",
                "too_many_pixels",
            )
    if len(sizes) > 1:
        raise _sizes_differ()
    pixels = sum(width * height for width, height in sizes) * len(pictures)
    if pixels * COST > limits.max_walked_pixels:
        raise MediaTooLargeError(
            f"the pictures have {pixels} pixels together; this server decodes at most "
            f"{limits.max_walked_pixels // COST}",
            "too_many_frames_walked",
        )


@contextlib.contextmanager
def _in_rgb(picture: bytes, request: dict[str, Any]) -> Iterator[Image.Image]:
    """The decoded picture as vLLM sees it: upright, in RGB."""
    with _opened(picture, request) as image:
        with contextlib.suppress(Exception):  # EXIF data that nobody can read turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        image.load()
        if image.mode == "RGB":
            yield image
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            below = Image.new("RGB", image.size, tuple(request["background"]))
            below.paste(image, mask=image.getchannel("A"))
            yield below
        else:
            yield image.convert("RGB")


def _bands(image: Image.Image, factor: int) -> Iterator[Frame]:
    """The pixels from top to bottom, in parts that shrink without a rest, so that copies are small.

    What is left over at the bottom is left out, as `shrink` does it.
    """
    rows = max(1, BAND_PIXELS // (image.width * factor)) * factor
    end = image.height // factor * factor
    for top in range(0, end, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, end))))


@contextlib.contextmanager
def _opened(picture: bytes, request: dict[str, Any]) -> Iterator[Image.Image]:
    """The picture with its header read. Whatever PIL raises inside is one MediaError."""
    what, formats = request["what"], request["formats"]
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are under our limit where somebody has raised that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture), formats=formats) as image:
                yield image
    except Image.DecompressionBombError:
        raise MediaTooLargeError("a picture has too many pixels", "too_many_pixels") from None
    except (MediaError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise MediaError(
            f"the {what} cannot be read: it is damaged, or none of {', '.join(formats)}"
        ) from None
    except Exception:
        # Decoders raise whatever they like over damaged bytes; to a client it is one thing.
        raise MediaError(f"the {what} cannot be read: it is damaged") from None


def _factor(count: int, width: int, height: int, limits: MediaLimits) -> int:
    factor = downscale_factor(count, height, width, limits.max_decoded_bytes)
    if count * (height // factor) * (width // factor) * 3 > limits.max_decoded_bytes:
        raise MediaTooLargeError(
            f"{count} frames of {width} x {height} pixels cannot be scaled down to "
            f"{limits.max_decoded_bytes} bytes",
            "too_many_pixels",
        )
    return factor


def _sizes_differ() -> MediaError:
    return MediaError("the frames of a video must all have the same size")
