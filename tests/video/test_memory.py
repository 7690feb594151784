"""The memory budget of decoded videos: what waits, what is refused, and that all is returned."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.errors import MediaBusyError, MediaDeadlineError, MediaError
from metok_vllm.video import MediaLimits, VideoFrames, read_video
from metok_vllm.video.memory import MemoryBudget, Reservation
from metok_vllm.video.pool import POOL
from metok_vllm.video.requester import REQUESTER, Requester
from tests.video import clips

FRAME = 96 * 160 * 3


class Owner:
    """Something that holds memory."""


def fits(budget: MemoryBudget, num_bytes: int, limit: int) -> bool:
    """Whether a new request gets that much now."""
    held = budget.take(Requester(), num_bytes, limit)
    if held is not None:
        held.give_back()
        budget.collect()
    return held is not None


def take(budget: MemoryBudget, num_bytes: int, limit: int) -> Reservation:
    """Reserve memory that must be free."""
    held = budget.take(Requester(), num_bytes, limit)
    assert held is not None
    return held


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12", "bf": "2"})


@pytest.fixture
def _all_free() -> Iterator[None]:
    gc.collect()
    POOL.queue.memory.collect()
    assert POOL.queue.memory.used == 0
    yield
    gc.collect()
    POOL.queue.memory.collect()
    assert POOL.queue.memory.used == 0, "some video kept its reservation"


def test_handed_over_memory_is_reserved_while_its_owner_lives() -> None:
    budget, owner = MemoryBudget(), Owner()
    held = take(budget, 10, 10)
    assert not fits(budget, 1, 10)
    held.hand_over(owner, 4)
    assert not fits(budget, 1, 10)
    held.give_back()
    assert fits(budget, 6, 10)
    assert not fits(budget, 7, 10)
    del owner
    assert fits(budget, 10, 10)


def test_a_request_that_holds_some_can_always_get_the_rest() -> None:
    """Two requests of six videos each took three, and waited for each other."""
    budget = MemoryBudget()
    first, second, small = Requester(videos=6), Requester(videos=6), Requester()
    held = [budget.take(first, 2, 12)]
    assert budget.take(second, 2, 12) is None, "the first could not end any more"
    # A request of one video that claims no more returns its memory without waiting.
    between = budget.take(small, 2, 12)
    assert between is not None
    held += [budget.take(first, 2, 12) for _ in range(4)]
    assert all(held)
    assert budget.take(first, 2, 12) is None
    between.give_back()
    held.append(budget.take(first, 2, 12))
    for one in held:
        assert one is not None
        one.give_back()
    assert budget.take(second, 2, 12) is not None


def test_a_finished_request_claims_nothing() -> None:
    budget, owner = MemoryBudget(), Owner()
    finished = Requester(videos=6)
    held = budget.take(finished, 2, 12)
    assert held is not None
    held.hand_over(owner, 2)
    assert budget.take(Requester(videos=6), 2, 12) is None
    finished.finish()
    assert budget.take(Requester(videos=6), 2, 12) is not None
    del owner
    assert budget.take(Requester(), 10, 12) is not None


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_within_the_limit_without_deadlock_and_all_returned(
    requests: list[tuple[int, int]], rng: random.Random
) -> None:
    """Requests of some videos of at most so many bytes each, in any order of steps."""
    limit, budget = 100, MemoryBudget()
    waiting = [(Requester(videos=n), n, min(size, limit // n)) for n, size in requests]
    reading: list[tuple[Requester, Reservation]] = []
    frames: dict[Requester, list[Owner]] = {requester: [] for requester, _, _ in waiting}
    while waiting:
        unread = [step for step in waiting if step[1] > 0]
        rng.shuffle(unread)
        steps = ((step, budget.take(step[0], step[2], limit)) for step in unread)
        step, held = next((pair for pair in steps if pair[1] is not None), (None, None))
        assert held or reading, "all requests wait for memory that others hold"
        assert budget.used <= limit
        if step is not None and held is not None:
            requester, left, size = step
            waiting[waiting.index(step)] = (requester, left - 1, size)
            reading.append((requester, held))
        if reading and (step is None or rng.random() < 0.5):
            requester, held = reading.pop(rng.randrange(len(reading)))
            owner = Owner()
            held.hand_over(owner, rng.randint(0, held.num_bytes))
            held.give_back()
            frames[requester].append(owner)
            del owner
        for requester, left, size in list(waiting):
            if left == 0 and not any(other is requester for other, _ in reading):
                frames.pop(requester).clear()
                waiting.remove((requester, left, size))
    budget.collect()
    assert budget.used == 0


@pytest.mark.usefixtures("_all_free")
def test_a_forked_child_starts_with_all_of_it() -> None:
    held = take(POOL.queue.memory, 10, 10)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if POOL.queue.memory.used == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not fits(POOL.queue.memory, 10, 10)
    held.give_back()


@pytest.mark.usefixtures("_all_free")
@pytest.mark.parametrize("mapped", [False, True])
def test_frames_and_their_views_hold_memory(
    mp4: bytes, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metok_vllm.video.channel.MAP_BYTES", 1 if mapped else 1 << 40)
    limits = MediaLimits(max_pending_bytes=4 * FRAME, decode_deadline_s=30)
    quick = MediaLimits(max_pending_bytes=4 * FRAME, decode_deadline_s=0.5)
    every_THWC, _ = clips.decode_all(mp4)
    video = read_video(mp4, 4, limits=limits)
    assert video.frames_THWC.nbytes == 4 * FRAME
    view = video.frames_THWC[1:, ::2].T.view(np.int8)
    indices = video.indices
    del video
    with pytest.raises(MediaBusyError, match="as much video as it may hold"):
        read_video(mp4, 4, limits=quick)
    np.testing.assert_array_equal(view.view(np.uint8).T, every_THWC[indices][1:, ::2])
    del view
    again = read_video(mp4, 4, limits=limits)
    # Ours alone, to write to as well.
    again.frames_THWC[:] = 7
    assert (again.frames_THWC == 7).all()


@pytest.mark.usefixtures("_all_free")
def test_a_video_larger_than_the_budget_is_scaled_into_it(mp4: bytes) -> None:
    video = read_video(mp4, 4, limits=MediaLimits(max_pending_bytes=FRAME))
    assert video.frames_THWC.shape == (4, 48, 80, 3)
    del video
    with pytest.raises(MediaError, match=r"4 frames of 160 x 96 .* down to 11 bytes") as caught:
        read_video(mp4, 4, limits=MediaLimits(max_pending_bytes=11))
    assert (caught.value.status, caught.value.reason) == (413, "too_many_pixels")


@pytest.mark.usefixtures("_all_free")
def test_failures_return_their_memory(mp4: bytes) -> None:
    heavy = clips.heavy()
    tries: list[tuple[bytes, MediaLimits, Any]] = [
        (mp4[:2000], MediaLimits(), MediaError),
        (b"not a video", MediaLimits(), MediaError),
        (mp4, MediaLimits(max_duration_s=1), MediaError),
        (heavy, MediaLimits(decode_deadline_s=0.2), (MediaDeadlineError, MediaBusyError)),
        (mp4, MediaLimits(max_decoded_bytes=3), MediaError),
    ]
    read_video(mp4, 2)
    with ThreadPoolExecutor(4) as threads:
        runs = [(threads.submit(read_video, d, 60, limits=m), e) for d, m, e in 3 * tries]
        for run, error in runs:
            assert isinstance(run.exception(), error)
    assert len(read_video(mp4, 2).indices) == 2


@pytest.mark.usefixtures("_all_free")
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_killed_worker_returns_its_memory(mp4: bytes, backend: str) -> None:
    POOL.end_workers()
    read_video(mp4, 2)
    (worker,) = POOL._all
    timer = threading.Timer(0.4, worker.process.kill)
    timer.start()
    with pytest.raises(MediaError, match="crashed"):
        read_video(clips.heavy(), 128, limits=MediaLimits(decode_workers=1, backend=backend))
    timer.join()


@pytest.mark.usefixtures("_all_free")
def test_two_requests_of_six_large_videos_do_not_deadlock(mp4: bytes) -> None:
    """Each needs half of the memory and more, and took it one video at a time."""
    limits = MediaLimits(max_pending_bytes=10 * 4 * FRAME, max_decoded_bytes=4 * FRAME)
    started = time.monotonic()

    def ask(requester: Requester) -> int:
        def read(_: int) -> VideoFrames:
            REQUESTER.set(requester)
            return read_video(mp4, 4, limits=limits)

        with ThreadPoolExecutor(6) as threads:
            videos = list(threads.map(read, range(6)))
        requester.finish()
        return sum(video.frames_THWC.nbytes for video in videos)

    with ThreadPoolExecutor(2) as threads:
        sizes = list(threads.map(ask, [Requester("a", videos=6), Requester("b", videos=6)]))
    assert sizes == [6 * 4 * FRAME] * 2
    assert time.monotonic() - started < 10
