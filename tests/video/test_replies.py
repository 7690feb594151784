"""A decode worker is not believed: what it makes up harms neither the server nor the next video."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from metok_vllm.errors import MediaDeadlineError, MediaError
from metok_vllm.video import MediaLimits, read_video, replies, worker_process
from metok_vllm.video.pool import POOL
from metok_vllm.video.replies import MAX_TEXT, REASON, decoded_of
from tests.video import liar

LIMITS = MediaLimits(decode_deadline_s=2, decode_workers=1)


@pytest.fixture(autouse=True)
def _lying_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    POOL.end_workers()
    monkeypatch.setattr(worker_process, "MODULE", "tests.video.liar")
    yield
    POOL.end_workers()


def worker() -> int:
    (one,) = POOL._all
    return one.process.pid


def test_the_truth() -> None:
    video = read_video(b"honest", 2, limits=LIMITS)
    assert video.frames_THWC.shape == tuple(liar.SHAPE)
    before = worker()
    assert read_video(b"honest", 8, limits=LIMITS).indices == [0, 3]
    assert worker() == before


@pytest.mark.parametrize("lie", liar.LIES)
def test_lies_end_the_worker_and_say_little(lie: str) -> None:
    read_video(b"honest", 2, limits=LIMITS)
    gc.collect()
    before, files = worker(), len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(MediaError) as caught:
        read_video(lie.encode(), 2, limits=LIMITS)
    slow = lie == "slow"
    assert type(caught.value) is (MediaDeadlineError if slow else MediaError)
    assert caught.value.reason == ("deadline" if slow else "decode_failed")
    assert slow or str(caught.value) == "the decoder crashed on the video"
    assert time.monotonic() - started < 5
    assert not POOL._all
    assert read_video(b"honest", 2, limits=LIMITS).indices == [0, 3]
    assert worker() != before
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_long_messages_are_cut() -> None:
    with pytest.raises(MediaError) as caught:
        read_video(b"a long message", 2, limits=LIMITS)
    assert str(caught.value) == "x" * MAX_TEXT


def test_reasons_are_not_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_reasons", set())

    def tell(reason: str) -> None:
        told: dict[str, Any] = {"type": "MediaError", "message": "m", "reason": reason}
        decoded_of({"error": told}, None, 1)

    seen = set()
    for number in range(200):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        with pytest.raises(MediaError) as caught:
            tell(f"lie_{name}")
        seen.add(caught.value.reason)
    assert len(seen) <= 65


@pytest.mark.parametrize("reason", ["too_many_frames_walked", "decode_failed", "empty", "busy"])
def test_our_own_reasons_pass(reason: str) -> None:
    assert REASON.fullmatch(reason)
