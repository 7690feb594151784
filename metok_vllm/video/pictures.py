"""Encoded pictures (frame lists and images) to frames, inside a decode worker.

Each picture is read as vLLM reads an image: its first frame in RGB, upright, over a background
where it is transparent.
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
from metok_vllm.video.decoding import fitting_factor, shrink
from metok_vllm.video.frames import Decoded, Frame
from metok_vllm.video.limits import MediaLimits, flag_of

# Decoding a pixel of a JPEG or PNG takes about as long as this many pixels of a video.
COST = 16
BAND_PIXELS = 1 << 18


def decode_pictures(
    file: BinaryIO, request: dict[str, Any], limits: MediaLimits, output: BinaryIO
) -> Decoded:
    """Write the concatenated pictures in `file` to `output`, as uint8 [T, H, W, 3].

    `request` has their `sizes` in bytes, the allowed PIL `formats`, the `background` colour and
    the name `what` for messages. Raises MediaError, and MediaTooLargeError before any is decoded.
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
                factor = fitting_factor(len(sizes), size[1], size[0], limits.max_decoded_bytes)
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
                f"a picture is over the limit of {limits.max_frame_pixels} pixels "
                f"({flag_of('max_frame_pixels')})",
                "too_many_pixels",
            )
    if len(sizes) > 1:
        raise _sizes_differ()
    pixels = sum(width * height for width, height in sizes) * len(pictures)
    if pixels * COST > limits.max_walked_pixels:
        raise MediaTooLargeError(
            f"the pictures have {pixels} pixels together; this server decodes at most "
            f"{limits.max_walked_pixels // COST} ({COST} of {flag_of('max_walked_pixels')} each)",
            "too_many_frames_walked",
        )


@contextlib.contextmanager
def _in_rgb(picture: bytes, request: dict[str, Any]) -> Iterator[Image.Image]:
    """The decoded picture as vLLM reads it: upright, in RGB."""
    with _opened(picture, request) as image:
        with contextlib.suppress(Exception):  # unreadable EXIF data: no rotation
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
    """The pixels from top to bottom, in bands of a multiple of `factor` rows, to keep copies small.

    A remainder at the bottom is cut, as in `shrink`.
    """
    rows = max(1, BAND_PIXELS // (image.width * factor)) * factor
    end = image.height // factor * factor
    for top in range(0, end, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, end))))


@contextlib.contextmanager
def _opened(picture: bytes, request: dict[str, Any]) -> Iterator[Image.Image]:
    """The picture with its header read. Every error of PIL inside becomes one MediaError."""
    what, formats = request["what"], request["formats"]
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that a raised limit allows.
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
        # Decoders raise many kinds of errors for damaged bytes.
        raise MediaError(f"the {what} cannot be read: it is damaged") from None


def _sizes_differ() -> MediaError:
    return MediaError("the frames of a video must all have the same size")
