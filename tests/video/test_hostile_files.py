"""Files that name or need more than any video: refused early, in little time and memory."""

from __future__ import annotations

import struct
import time

import pytest

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video import MediaLimits, probe, read_video
from tests.video import clips
from tests.video.fields import clip as clip_of_fields

LIMITS = MediaLimits()
# Far from what is refused early; under it only on a machine that does nothing else.
SOON_S = 5.0


@pytest.fixture(scope="module")
def mp4() -> bytes:
    """Four frames, each a keyframe."""
    return clips.encode("mpeg4", size=(64, 48), num_frames=4, options={"g": "1"})


def with_table(data: bytes, name: bytes, content: bytes) -> bytes:
    """The mp4, whose index comes last, with another content of one of its sample tables."""
    place = data.index(name) - 4
    (size,) = struct.unpack(">I", data[place : place + 4])
    box = struct.pack(">I", 8 + len(content)) + name + content
    data = data[:place] + box + data[place + size :]
    for outer in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.index(outer) - 4
        (length,) = struct.unpack(">I", data[place : place + 4])
        data = data[:place] + struct.pack(">I", length + len(box) - size) + data[place + 4 :]
    return data


def with_samples(data: bytes, count: int, size: int) -> bytes:
    """The mp4 with `count` samples of `size` bytes in one piece, named in a few bytes."""
    (offset,) = struct.unpack(">I", data[data.index(b"stco") + 12 :][:4])
    data = with_table(data, b"stsz", struct.pack(">III", 0, size, count))
    data = with_table(data, b"stts", struct.pack(">IIII", 0, 1, count, 1))
    data = with_table(data, b"stsc", struct.pack(">IIIII", 0, 1, 1, count, 1))
    return with_table(data, b"stco", struct.pack(">III", 0, 1, offset))


def refused(data: bytes, limits: MediaLimits = LIMITS, num_frames: int = 4) -> MediaTooLargeError:
    """The refusal of the video, which must come soon."""
    started = time.monotonic()
    with pytest.raises(MediaTooLargeError) as caught:
        read_video(data, num_frames, limits=limits)
    assert time.monotonic() - started < SOON_S
    return caught.value


@pytest.mark.parametrize("count", [500_001, 60_000_000, 2**31 - 1, 2**32 - 1])
def test_samples_named_in_a_few_bytes(mp4: bytes, count: int) -> None:
    data = with_samples(mp4, count, 1)
    assert len(data) < 5000
    assert refused(data).reason == "too_many_packets"
    with pytest.raises(MediaTooLargeError, match="over 500000 packets"):
        probe(data, LIMITS)


def test_samples_of_a_fragment_named_in_a_few_bytes(mp4: bytes) -> None:
    run = struct.pack(">I4sII", 16, b"trun", 0, 80_000_000)
    traf = struct.pack(">I4s", 8 + len(run), b"traf") + run
    moof = struct.pack(">I4s", 8 + len(traf), b"moof") + traf
    assert refused(mp4 + moof).reason == "too_many_packets"


def test_boxes_of_no_content(mp4: bytes) -> None:
    place = mp4.index(b"moov") - 4
    data = mp4[:place] + b"\0\0\0\x08free" * 300_000 + mp4[place:]
    error = refused(data)
    assert (error.reason, "boxes" in str(error)) == ("too_many_packets", True)


def test_packets_larger_than_the_file(mp4: bytes) -> None:
    """Samples may lie over each other, so that few bytes are read over and over."""
    piece = struct.pack(">I", mp4.index(b"mdat") + 4)
    data = with_samples(mp4, 400, 1000) + bytes(1000)
    data = with_table(data, b"stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    data = with_table(data, b"stco", struct.pack(">II", 0, 400) + piece * 400)
    error = refused(data, MediaLimits(max_bytes=len(data)))
    assert (error.reason, "larger than the file" in str(error)) == ("too_large", True)


def test_frames_walked_are_limited_before_any_is_decoded() -> None:
    # 60 frames, of which a sample of 2 takes the first and last.
    one_group = clips.encode(options={"bf": "0", "sc_threshold": "0"})
    groups = clips.encode(options={"bf": "0", "g": "10", "sc_threshold": "0"})
    pixels = 160 * 96
    for limits in (
        MediaLimits(max_walked_frames=59),
        MediaLimits(max_walked_pixels=60 * pixels - 1),
    ):
        error = refused(one_group, limits, 2)
        assert error.reason == "too_many_frames_walked"
        assert "60 frames" in str(error)
        assert "more keyframes" in str(error)
        assert len(read_video(groups, 2, limits=limits).indices) == 2
    for limits in (MediaLimits(max_walked_frames=60), MediaLimits(max_walked_pixels=60 * pixels)):
        assert len(read_video(one_group, 2, limits=limits).indices) == 2
    assert len(read_video(groups, 2, limits=MediaLimits(max_walked_frames=11)).indices) == 2
    assert refused(groups, MediaLimits(max_walked_frames=10), 2).reason == "too_many_frames_walked"


def test_frames_walked_in_order_are_limited() -> None:
    """Fields come two to a frame: found out by decoding, then all 100 packets are walked."""
    data = clip_of_fields("mp4", apart=True)
    assert len(read_video(data, 8, limits=MediaLimits(max_walked_frames=100)).indices) == 8
    error = refused(data, MediaLimits(max_walked_frames=99), 8)
    assert error.reason == "too_many_frames_walked"


def test_frames_that_grow_on_the_way_are_limited() -> None:
    """The first frames are small: what the walk costs is known only from those decoded."""
    small = clips.encode(container="mpegts", size=(64, 48), num_frames=12)
    large = clips.encode(container="mpegts", size=(640, 480), num_frames=12)
    pixels = 12 * 64 * 48 + 12 * 640 * 480
    assert len(read_video(small + large, 24, limits=LIMITS).indices) == 24
    error = refused(small + large, MediaLimits(max_walked_pixels=pixels - 1), 24)
    assert error.reason == "too_many_frames_walked"
