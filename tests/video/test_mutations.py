"""Damaged files of five containers give frames or a MediaError in time."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import cache

import pytest

from metok_vllm.errors import MediaDeadlineError, MediaError
from metok_vllm.video import MediaLimits, read_video
from tests.video import clips
from tests.video.odd_clips import GOP, MPEG2

SIZE = (64, 48)
CLIPS = {
    "mp4": lambda: clips.encode(size=SIZE, options=GOP),
    "webm": lambda: clips.encode("libvpx-vp9", "webm", size=SIZE, options={"cpu-used": "8"}),
    "mpegts": lambda: clips.encode(container="mpegts", size=SIZE, options=GOP),
    "avi": lambda: clips.encode("mpeg4", "avi", size=SIZE, options={"g": "12", "bf": "2"}),
    "mpeg": lambda: clips.encode("mpeg2video", "mpeg", size=SIZE, options=MPEG2),
}
VARIANTS = 12
LIMITS = MediaLimits(decode_deadline_s=5.0, decode_workers=1, max_walked_frames=2000)


@cache
def clip(container: str) -> bytes:
    return CLIPS[container]()


def mutated(data: bytes, seed: int) -> bytes:
    """The file cut off, with bits flipped, or with a piece doubled, lost or of zeros."""
    rng = random.Random(seed)
    start, length = rng.randrange(len(data)), rng.randrange(1, 1000)
    end = min(len(data), start + length)
    match seed % 5:
        case 0:
            return data[: 1 + start]
        case 1:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 10, 100))):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return data[:start] + data[start:end] * 2 + data[end:]
        case 3:
            return data[:start] + data[end:]
    return data[:start] + bytes(end - start) + data[end:]


@pytest.mark.parametrize("container", CLIPS)
def test_damaged_files_give_frames_or_a_media_error(container: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(VARIANTS):
        started = time.monotonic()
        try:
            video = read_video(mutated(clip(container), seed), 8, limits=LIMITS)
        except MediaDeadlineError:
            raise
        except MediaError as error:
            seen[error.reason] += 1
        else:
            seen["frames"] += 1
            assert len(video.frames_THWC) == len(video.indices) == len(video.timestamps_s) > 0
            assert video.indices == sorted(set(video.indices))
            assert video.timestamps_s == sorted(video.timestamps_s)
            assert 0 <= video.indices[-1] < video.total_frames
            assert 0 < video.duration_s <= LIMITS.max_duration_s
        assert time.monotonic() - started < 2 * LIMITS.decode_deadline_s
    # A crash of the decoder counts as decode_failed.
    assert seen["frames"] > 0, seen
    assert len(read_video(clip(container), 8, limits=LIMITS).indices) == 8
