"""Videos of finished requests are neither queued nor decoded, and do not affect others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import pytest

from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, VideoFrames, read_video
from metok_vllm.video.pool import POOL
from metok_vllm.video.requester import REQUESTER, Requester
from tests.video import clips
from tests.video.decoders import stopped_decoders
from tests.waiting import wait_until

LIMITS = MediaLimits(decode_workers=1)


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12"})


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as executor:
        yield executor


def read(data: bytes, num_frames: int, requester: Requester) -> VideoFrames:
    def inside() -> VideoFrames:
        REQUESTER.set(requester)
        return read_video(data, num_frames, limits=LIMITS)

    return copy_context().run(inside)


def failed(future: Future[VideoFrames]) -> MediaError:
    error = future.exception(timeout=1)
    assert isinstance(error, MediaError)
    return error


def test_ten_finished_requests_block_no_other(mp4: bytes, threads: ThreadPoolExecutor) -> None:
    """One is decoded and nine wait; without the end they would last to their deadlines."""
    finished = [Requester(f"client {number}") for number in range(10)]
    with stopped_decoders(1) as (worker,):
        runs = [threads.submit(read, mp4, 2, requester) for requester in finished]
        wait_until(lambda: len(POOL.queue._waiting) == 9, 5)
        wait_until(lambda: any(entry.kill for entry in POOL.queue._running), 5)
        for requester in finished:
            requester.finish()
        assert {failed(run).reason for run in runs} == {"abandoned"}
        assert not worker.alive()
        started = time.monotonic()
        assert len(read(mp4, 4, Requester("other")).indices) == 4
        assert time.monotonic() - started < 2
    POOL.queue.memory.collect()


def test_a_request_finished_before_starts_nothing(mp4: bytes) -> None:
    requester = Requester()
    requester.finish()
    with pytest.raises(MediaError, match="has ended"):
        read(mp4, 2, requester)
    assert not POOL.queue._running
    assert not POOL.queue._waiting


def test_requests_that_finish_at_any_moment(mp4: bytes) -> None:
    """The end of one request kills neither the next video nor its worker."""
    POOL.end_workers()
    for number in range(24):
        requester = Requester()
        timer = threading.Timer(number * 0.001, requester.finish)
        timer.start()
        try:
            read(mp4, 4, requester)
        except MediaError as error:
            assert error.reason == "abandoned"  # noqa: PT017 - it may also be in time
        assert len(read(mp4, 4, Requester()).indices) == 4
        timer.join()
    assert not POOL.queue._running
    assert len(POOL._all) == 1


def test_small_videos_pass_heavy_ones_of_the_same_client(
    mp4: bytes, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heavy ones are found out by their decoding time; they hold both decoders."""
    monkeypatch.setattr("metok_vllm.video.decode_queue.HEAVY_S", 0.5)
    limits = MediaLimits(decode_workers=2)
    with stopped_decoders(2) as workers:
        runs = [threads.submit(read_video, mp4, 8, limits=limits) for _ in range(2)]
        wait_until(lambda: len([entry for entry in POOL.queue._running if entry.kill]) == 2, 5)
        started = time.monotonic()
        assert len(read_video(mp4, 4, limits=limits).indices) == 4
        assert time.monotonic() - started < 10
        # One was preempted for the small one and queues again; the other keeps its decoder.
        assert sorted(worker.alive() for worker in workers) == [False, True]
        wait_until(lambda: sum(run.done() for run in runs) == 1, 10)
    assert [len(run.result(timeout=10).indices) for run in runs] == [8, 8]
