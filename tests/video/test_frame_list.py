"""Videos that come as lists of pictures, and images: what is read, and what is refused how soon."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metok_vllm.errors import MediaDeadlineError, MediaError
from metok_vllm.video import MediaLimits
from metok_vllm.video.decoding import shrink
from metok_vllm.video.frame_list import IMAGE_FORMATS, read_frame_list, read_image
from metok_vllm.video.pool import POOL
from metok_vllm.video.queue_entry import QueueEntry
from tests.video import clips

LIMITS = MediaLimits()


def encoded(pixels_HWC: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, kind, **options)
    return file.getvalue()


def frames(count: int, width: int = 32, height: int = 24, kind: str = "PNG") -> list[bytes]:
    return [encoded(clips.picture(number, width, height), kind) for number in range(count)]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says so in its header and holds these chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(name + data))
        parts += [struct.pack(">I", len(data)), name, data, crc]
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_list_is_its_frames(kind: str) -> None:
    sent = frames(5, kind=kind)
    video = read_frame_list(sent, LIMITS)
    expected = [np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in sent]
    np.testing.assert_array_equal(video.frames_THWC, np.stack(expected))
    assert video.indices == [0, 1, 2, 3, 4]
    assert video.downscale == 1


def test_a_list_is_scaled_down_as_a_video_is() -> None:
    sent = frames(3, 1001, 703)
    limits = MediaLimits(max_decoded_bytes=3 * 400 * 300 * 3)
    video = read_frame_list(sent, limits)
    expected = [shrink(clips.picture(number, 1001, 703), 3) for number in range(3)]
    np.testing.assert_array_equal(video.frames_THWC, np.stack(expected))
    assert video.downscale == 3


def test_frames_are_turned_upright_and_stand_on_a_background() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    pixels_HWC = clips.picture(1, 32, 24)
    turned = read_frame_list([encoded(pixels_HWC, exif=exif)], LIMITS)
    np.testing.assert_array_equal(turned.frames_THWC[0], np.rot90(pixels_HWC, -1))
    clear = np.zeros((4, 6, 4), np.uint8)
    assert (read_frame_list([encoded(clear)], LIMITS).frames_THWC == 255).all()
    green = read_frame_list([encoded(clear)], LIMITS, (0, 9, 0)).frames_THWC
    assert (green == (0, 9, 0)).all()


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ([], 422, "empty"),
        ([b""], 422, "empty"),
        ([*frames(1), b""], 422, "empty"),
        ([b"nothing"], 422, "none of JPEG, PNG, WEBP"),
        ([frames(1)[0][:60]], 422, "damaged"),
        ([*frames(1), *frames(1, 24, 32)], 422, "the same size"),
        ([encoded(clips.picture(0, 8, 8), "TIFF")], 422, "none of JPEG, PNG, WEBP"),
        ([encoded(clips.picture(0, 8, 8), "GIF")], 422, "none of JPEG, PNG, WEBP"),
        ([encoded(clips.picture(0, 8, 8), "BMP")], 422, "none of JPEG, PNG, WEBP"),
        ([png(4001, 4000)], 413, "16000000 pixels"),
        ([png(60000, 60000)], 413, "pixels"),
        (frames(1) * 129, 413, "at most"),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:20],
)
def test_refused(sent: list[bytes], status: int, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        read_frame_list(sent, LIMITS)
    assert caught.value.status == status


def test_all_headers_are_read_before_any_frame_is_decoded() -> None:
    slow = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG")
    read_frame_list(frames(1), LIMITS)
    started = time.monotonic()
    with pytest.raises(MediaError, match="the same size"):
        read_frame_list([*[slow] * 40, frames(1)[0]], LIMITS)
    assert time.monotonic() - started < 1


def test_a_long_list_waits_as_heavy_videos_do(monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[bool] = []
    wait = POOL.queue.wait

    def waiting(entry: QueueEntry, seconds: float) -> None:
        queued.append(entry.heavy)
        wait(entry, seconds)

    monkeypatch.setattr(POOL.queue, "wait", waiting)
    still = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG")
    limits = MediaLimits(max_walked_pixels=5_000_000_000)
    video = read_frame_list([still] * 16, limits)
    assert video.frames_THWC.shape == (16, 2000, 2000, 3)
    assert queued == [False, True]
    with pytest.raises(MediaError, match="pixels together") as caught:
        read_frame_list([still] * 20, limits)
    assert caught.value.status == 413


def test_a_list_is_killed_at_its_deadline() -> None:
    still = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG")
    read_frame_list(frames(1), LIMITS)
    started = time.monotonic()
    with pytest.raises(MediaDeadlineError, match=r"list of frames took longer than 0.3 s"):
        read_frame_list([still] * 40, MediaLimits(decode_deadline_s=0.3))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_images(kind: str) -> None:
    pixels_HWC = clips.picture(3, 40, 30)
    data = encoded(pixels_HWC, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(read_image(data, LIMITS).frames_THWC[0], expected)


def test_an_image_keeps_its_size() -> None:
    data = encoded(clips.picture(3, 100, 80))
    video = read_image(data, MediaLimits(max_decoded_bytes=100))
    assert video.frames_THWC.shape == (1, 80, 100, 3)


def many_gif_frames() -> bytes:
    stills = [Image.new("P", (64, 64), number % 256) for number in range(3000)]
    file = io.BytesIO()
    stills[0].save(file, "GIF", save_all=True, append_images=stills[1:])
    return file.getvalue()


def gif_of_comments() -> bytes:
    """Sixteen million comment blocks of one byte before the first picture."""
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\x21\xfe"
    return head + b"\x01x" * (16 << 20) + b"\0" + b"\x3b"


def jpeg_of_segments() -> bytes:
    return b"\xff\xd8" + b"\xff\xe1\x00\x02" * (12 << 20)


def jpeg_of_scans() -> bytes:
    """A progressive picture of 16 million pixels whose last scan comes two thousand times."""
    still = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG", progressive=True)
    start = still.rindex(b"\xff\xda")
    end = still.rindex(b"\xff\xd9")
    return still[:start] + still[start:end] * 2000 + b"\xff\xd9"


def png_of_texts() -> bytes:
    bomb = zlib.compress(bytes(1 << 20), 9)
    return png(8, 8, *[(b"zTXt", b"k\0\0" + bomb)] * 10_000)


def webp_of_frames() -> bytes:
    stills = [Image.new("RGB", (256, 256), (number % 256, 0, 0)) for number in range(1500)]
    file = io.BytesIO()
    stills[0].save(file, "WEBP", save_all=True, append_images=stills[1:], method=0)
    return file.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        many_gif_frames,
        gif_of_comments,
        jpeg_of_segments,
        jpeg_of_scans,
        png_of_texts,
        webp_of_frames,
    ],
)
def test_no_image_takes_longer_than_the_deadline(make: Callable[[], bytes]) -> None:
    """None of them is looked at in this process, so others are not held up meanwhile."""
    data = make()
    assert len(data) <= LIMITS.max_bytes
    read_image(frames(1)[0], LIMITS)
    started, cpu_s = time.monotonic(), time.thread_time()
    with contextlib.suppress(MediaError):
        read_image(data, MediaLimits(decode_deadline_s=1.5))
    assert time.monotonic() - started < 4
    assert time.thread_time() - cpu_s < 0.5
    assert read_image(frames(1)[0], LIMITS).frames_THWC.shape == (1, 24, 32, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/etc/passwd) run\n",
        b"%PDF-1.4\n",
        encoded(clips.picture(0, 8, 8), "TIFF"),
        encoded(clips.picture(0, 16, 16), "ICO"),
        encoded(clips.picture(0, 8, 8), "PPM"),
        encoded(clips.picture(0, 8, 8), "PCX"),
        encoded(clips.picture(0, 8, 8), "TGA"),
        encoded(clips.picture(0, 8, 8), "JPEG2000"),
    ],
    ids=["EPS", "PDF", "TIFF", "ICO", "PPM", "PCX", "TGA", "JPEG2000"],
)
def test_formats_that_are_not_read(data: bytes) -> None:
    with pytest.raises(MediaError, match="none of JPEG, PNG, WEBP, GIF, BMP") as caught:
        read_image(data, LIMITS)
    assert caught.value.status == 422


def test_ghostscript_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    subprocess.run(["gs"], check=True)
    (tmp_path / "called").unlink()
    POOL.end_workers()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(MediaError):
        read_image(eps, LIMITS)
    assert not (tmp_path / "called").exists()
    POOL.end_workers()
