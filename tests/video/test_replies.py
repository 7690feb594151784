"""Invalid replies of a compromised worker affect neither the server nor the next video."""

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
from tests.video import bad_worker

LIMITS = MediaLimits(decode_deadline_s=2, decode_workers=1)


@pytest.fixture(autouse=True)
def _bad_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    POOL.end_workers()
    monkeypatch.setattr(worker_process, "MODULE", "tests.video.bad_worker")
    yield
    POOL.end_workers()


def worker() -> int:
    (one,) = POOL._all
    return one.process.pid


def test_valid_replies() -> None:
    video = read_video(b"valid", 2, limits=LIMITS)
    assert video.frames_THWC.shape == tuple(bad_worker.SHAPE)
    before = worker()
    assert read_video(b"valid", 8, limits=LIMITS).indices == [0, 3]
    assert worker() == before


@pytest.mark.parametrize("reply", bad_worker.BAD_REPLIES)
def test_bad_replies_end_the_worker(reply: str) -> None:
    read_video(b"valid", 2, limits=LIMITS)
    gc.collect()
    before, files = worker(), len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(MediaError) as caught:
        read_video(reply.encode(), 2, limits=LIMITS)
    slow = reply == "slow"
    assert type(caught.value) is (MediaDeadlineError if slow else MediaError)
    assert caught.value.reason == ("deadline" if slow else "decode_failed")
    assert slow or str(caught.value) == "the decoder crashed on the video"
    assert time.monotonic() - started < 5
    assert not POOL._all
    assert read_video(b"valid", 2, limits=LIMITS).indices == [0, 3]
    assert worker() != before
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_long_messages_are_truncated() -> None:
    with pytest.raises(MediaError) as caught:
        read_video(b"a long message", 2, limits=LIMITS)
    assert str(caught.value) == "x" * MAX_TEXT


def test_the_number_of_reasons_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_reasons", set())

    def report(reason: str) -> None:
        error: dict[str, Any] = {"type": "MediaError", "message": "m", "reason": reason}
        decoded_of({"error": error}, None, 1)

    seen = set()
    for number in range(200):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        with pytest.raises(MediaError) as caught:
            report(f"bad_{name}")
        seen.add(caught.value.reason)
    assert len(seen) <= 65


@pytest.mark.parametrize("reason", ["too_many_frames_walked", "decode_failed", "empty", "busy"])
def test_our_own_reasons_pass(reason: str) -> None:
    assert REASON.fullmatch(reason)
