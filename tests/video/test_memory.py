"""The budget of decoded videos: who waits, who is refused, and that nothing of it gets lost."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import pytest

from metok_vllm.errors import MediaDeadline, MediaError
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.channel import anonymous_file, write_all
from metok_vllm.video.memory import MEMORY, MemoryBudget
from metok_vllm.video.pool import POOL
from tests.video import clips

FRAME = 96 * 160 * 3


class Owner:
    """Something that holds memory."""


def is_full(budget: MemoryBudget, limit: int) -> bool:
    """Whether all of `limit` can be had at once."""
    try:
        with budget.reserve(limit, limit, 0):
            return True
    except MediaDeadline:
        return False


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12", "bf": "2"})


@pytest.fixture
def _all_free() -> Iterator[None]:
    gc.collect()
    assert is_full(MEMORY, 1)
    yield
    gc.collect()
    assert is_full(MEMORY, 1), "some video kept its reservation"


def test_what_is_handed_over_lasts_as_long_as_its_owner() -> None:
    budget, owner = MemoryBudget(), Owner()
    with budget.reserve(10, 10, 0) as held:
        assert not is_full(budget, 10)
        held.hand_over(owner, 4)
    assert not is_full(budget, 10)
    with budget.reserve(6, 10, 0), pytest.raises(MediaDeadline), budget.reserve(1, 10, 0):
        pass
    del owner
    assert is_full(budget, 10)


def test_refusal_after_the_wait() -> None:
    budget = MemoryBudget()
    with budget.reserve(10, 10, 0):
        started = time.monotonic()
        with pytest.raises(MediaDeadline, match=r"\(10 bytes\); try again") as caught:
            budget.reserve(1, 10, 0.2).__enter__()
        assert 0.2 <= time.monotonic() - started < 2
    assert (caught.value.status, caught.value.reason) == (504, "busy")
    assert is_full(budget, 10)


def test_everyone_in_the_queue_is_refused_in_time() -> None:
    budget = MemoryBudget()

    def wait(_: int) -> float:
        started = time.monotonic()
        with pytest.raises(MediaDeadline), budget.reserve(1, 10, 0.3):
            pass
        return time.monotonic() - started

    with budget.reserve(10, 10, 0), ThreadPoolExecutor(4) as threads:
        waits = list(threads.map(wait, range(4)))
    assert min(waits) >= 0.3
    assert max(waits) < 2
    assert is_full(budget, 10)


def test_a_queue_does_not_wait_for_a_full_collection_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of a second in a large process; the last of many was refused seconds late."""
    collections: list[float] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(time.monotonic()))
    budget = MemoryBudget()

    def wait(_: int) -> None:
        with pytest.raises(MediaDeadline), budget.reserve(1, 10, 0.05):
            pass

    with budget.reserve(10, 10, 0), ThreadPoolExecutor(4) as threads:
        list(threads.map(wait, range(4)))
        assert len(collections) == 1
        monkeypatch.setattr("metok_vllm.video.memory.COLLECT_EVERY_S", 0.0)
        wait(0)
        assert len(collections) == 2


def test_a_waiting_caller_goes_on_when_memory_comes_back() -> None:
    budget = MemoryBudget()
    owners = [Owner()]
    with budget.reserve(10, 10, 0) as held:
        held.hand_over(owners[0], 10)
    timer = threading.Timer(0.2, owners.clear)
    timer.start()
    with budget.reserve(10, 10, 30):
        assert not owners
    timer.join()


def test_garbage_cycles_hold_no_memory() -> None:
    budget, owner = MemoryBudget(), Owner()
    vars(owner)["self"] = owner
    with budget.reserve(10, 10, 0) as held:
        held.hand_over(owner, 10)
    gc.disable()
    try:
        del owner
        assert is_full(budget, 10)
    finally:
        gc.enable()


def test_never_more_than_the_limit() -> None:
    budget = MemoryBudget()
    lock, used, most = threading.Lock(), 0, 0

    def work(seed: int) -> None:
        nonlocal used, most
        rng = random.Random(seed)
        for _ in range(50):
            size = rng.randint(1, 60)
            with budget.reserve(size, 100, 30) as held:
                with lock:
                    used += size
                    most = max(most, used)
                owner = Owner()
                held.hand_over(owner, rng.randint(0, size))
                time.sleep(0.0005)  # so that others come in between
                with lock:
                    used -= size
                del owner

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert 60 < most <= 100
    assert is_full(budget, 100)


@pytest.mark.usefixtures("_all_free")
def test_a_forked_child_starts_with_all_of_it() -> None:
    with MEMORY.reserve(10, 10, 0):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if is_full(MEMORY, 10) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert not is_full(MEMORY, 10)


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
    with pytest.raises(MediaDeadline, match="as much video as it may hold"):
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
def test_no_failure_keeps_memory(mp4: bytes) -> None:
    heavy = clips.heavy()
    tries = [
        (mp4[:2000], MediaLimits(), MediaError),
        (b"not a video", MediaLimits(), MediaError),
        (mp4, MediaLimits(max_duration_s=1), MediaError),
        (heavy, MediaLimits(decode_deadline_s=0.2), MediaDeadline),
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
def test_a_killed_worker_keeps_no_memory(mp4: bytes, backend: str) -> None:
    POOL.close()
    read_video(mp4, 2)
    (worker,) = POOL._all
    timer = threading.Timer(0.4, worker.process.kill)
    timer.start()
    with pytest.raises(MediaError, match="crashed"):
        read_video(clips.heavy(), 128, limits=MediaLimits(decode_workers=1, backend=backend))
    timer.join()


@pytest.mark.usefixtures("_all_free")
@pytest.mark.parametrize("num_frames", [0, 2, 3])
def test_a_worker_that_claims_other_frames_than_it_wrote(
    mp4: bytes, num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object) -> tuple[dict[str, Any], BinaryIO]:
        file = anonymous_file()
        write_all(file, bytes(FRAME))
        return {"decoded": {"shape": [num_frames, 96, 160, 3]}}, file

    monkeypatch.setattr(POOL, "call", call)
    with pytest.raises(MediaError, match="crashed"):
        read_video(mp4, 2, limits=MediaLimits(max_decoded_bytes=2 * FRAME))
