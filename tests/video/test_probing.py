"""Facts about good videos, and the reason and message for each kind of bad one."""

from __future__ import annotations

import random
import struct

import pytest

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video import MediaLimits, VideoProbe, probe, read_video
from tests.video import clips

LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12", "bf": "2"})


def test_facts(mp4: bytes) -> None:
    assert probe(mp4, LIMITS) == VideoProbe("mp4", "h264", 160, 96, 60, 25.0, 2.4)


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [("libvpx-vp9", "webm", "vp9"), ("mpeg4", "avi", "mpeg4"), ("libx264", "mpegts", "h264")],
)
def test_containers(codec: str, container: str, name: str) -> None:
    found = probe(clips.encode(codec, container, num_frames=25), LIMITS)
    assert (found.codec, found.num_frames) == (name, 25)
    assert found.container in ("matroska", "avi", "mpegts")
    assert found.duration_s == pytest.approx(1.0)


def test_variable_frame_rate() -> None:
    found = probe(clips.encode(times_ms=[0, 100, 1000, 1100, 4000]), LIMITS)
    assert found.num_frames == 5
    assert found.fps == pytest.approx(1.0)
    assert found.duration_s == pytest.approx(5.0)


def test_a_header_that_lies_about_the_duration(mp4: bytes) -> None:
    data = bytearray(mp4)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        # Version 0 boxes: the duration is the field before the first fixed one.
        start = data.index(box) + (24 if box == b"tkhd" else 20)
        data[start : start + 4] = struct.pack(">I", 0x7FFFFFFF)
    assert probe(bytes(data), LIMITS).duration_s == pytest.approx(2.4)


def bad_videos() -> dict[str, tuple[bytes, str, str]]:
    """name -> (bytes, reason, a part of the message)."""
    mp4 = clips.encode(options={"g": "12"})
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"
    return {
        "empty": (b"", "empty", "0 bytes"),
        "random bytes": (random.Random(1).randbytes(5000), "not_video", "not a video"),
        "text": (b"a question, not a video" * 50, "not_video", "not a video"),
        "picture": (clips.encode("png", "image2pipe", num_frames=1, pixels="rgb24"),
                    "not_video", "not a video"),
        "playlist": (playlist, "not_video", "not a video"),
        "list of files": (b"ffconcat version 1.0\nfile 'a.mp4'\n", "not_video", "not a video"),
        "truncated mp4": (mp4[: len(mp4) // 2], "not_video", "moov"),
        "audio": (clips.audio_only(), "no_video_stream", "no video stream"),
        "audio with cover": (clips.audio_only(cover=True), "no_video_stream", "no video stream"),
        "no frames": (clips.zero_frames(), "zero_frames", "no frames"),
        "huge": (clips.huge_frames(16384), "too_many_pixels", "16384 x 16384 pixels"),
        "long": (clips.encode(times_ms=[0, 3_600_000, 7_200_000]), "too_long", "10800 s"),
    }  # fmt: skip


BAD = bad_videos()


@pytest.mark.parametrize("name", BAD)
def test_bad_video_then_a_good_one(name: str, mp4: bytes) -> None:
    data, reason, message = BAD[name]
    too_large = reason.startswith("too_")
    for read in (lambda: probe(data, LIMITS), lambda: read_video(data, 4, limits=LIMITS)):
        with pytest.raises(MediaError, match=message) as caught:
            read()
        assert caught.value.reason == reason
        assert isinstance(caught.value, MediaTooLargeError) == too_large
    assert read_video(mp4, 4, limits=LIMITS).frames_THWC.shape == (4, 96, 160, 3)


@pytest.mark.parametrize(
    ("limits", "reason", "message"),
    [
        (MediaLimits(max_bytes=1000), "too_large", r"at most 1000 \(--metok-media-max-bytes\)$"),
        (
            MediaLimits(max_duration_s=2.3),
            "too_long",
            r"lasts 2 s; .* at most 2.3 s \(--metok-media-max-duration-s\)$",
        ),
        (MediaLimits(max_frame_pixels=160 * 96 - 1), "too_many_pixels", "160 x 96 pixels"),
    ],
)
def test_limits(mp4: bytes, limits: MediaLimits, reason: str, message: str) -> None:
    for read in (lambda: probe(mp4, limits), lambda: read_video(mp4, 4, limits=limits)):
        with pytest.raises(MediaTooLargeError, match=message) as caught:
            read()
        assert caught.value.reason == reason


@pytest.mark.parametrize("size", [(160, 96), (130, 2), (2, 130)])
def test_exactly_at_the_limits(size: tuple[int, int]) -> None:
    data = clips.encode(size=size, num_frames=10)
    limits = MediaLimits(
        max_bytes=len(data), max_duration_s=0.4, max_frame_pixels=size[0] * size[1]
    )
    assert probe(data, limits).num_frames == 10
    assert len(read_video(data, 4, limits=limits).indices) == 4


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_cut_off_behind_its_index(share: float) -> None:
    """The index in front is whole, so the first frames would decode: half a video is no video."""
    data = SAMPLE_VIDEO.read_bytes()
    with pytest.raises(MediaError, match="cut off") as caught:
        probe(data[: int(len(data) * share)], MediaLimits())
    assert caught.value.reason == "truncated"
    assert probe(data, MediaLimits()).num_frames == 720
