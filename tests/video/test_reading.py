"""read_video in a server: deadlines, crashes, threads, no leaks."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metok_vllm.errors import MediaDeadlineError, MediaError, MediaTooLargeError
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.pool import POOL
from metok_vllm.video.worker_process import Worker
from tests.video import clips


def children() -> set[int]:
    """Decoding processes that this one has started and not reaped, dead ones included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if not is_of_others(pid)}


def is_of_others(pid: int) -> bool:
    """Whether other tests of this session started the process; a dead one has no command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True
    return command != b"" and b"metok_vllm.video.worker" not in command


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.encode(options={"g": "12", "bf": "2"})


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """Takes seconds to decode: every one of its 3000 frames is needed for a sample of 128."""
    return clips.heavy()


@pytest.fixture
def worker(mp4: bytes) -> int:
    """The one worker that there is."""
    POOL.end_workers()
    read_video(mp4, 2)
    (pid,) = children()
    return pid


def test_counts(mp4: bytes) -> None:
    limits = MediaLimits(max_frames=16, default_frames=8)
    assert len(read_video(mp4, -1, limits=limits).indices) == 16
    assert len(read_video(mp4, 0, limits=limits).indices) == 16
    assert len(read_video(mp4, 16, limits=limits).indices) == 16
    assert read_video(mp4, 16, fps=2, limits=limits).indices == [0, 19, 39, 59]
    with pytest.raises(MediaTooLargeError, match=r"17 frames .* at most 16") as caught:
        read_video(mp4, 17, limits=limits)
    assert caught.value.reason == "too_many_frames"


def test_limits_come_from_the_environment(mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METOK_MEDIA_MAX_DURATION_S", "1.5")
    with pytest.raises(MediaTooLargeError, match=r"at most 1.5 s"):
        read_video(mp4, 4)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_heavy_video_is_killed_at_its_deadline(heavy: bytes, mp4: bytes, backend: str) -> None:
    # Warm, so that the time below is the deadline's and not that of starting a process.
    read_video(mp4, 2)
    before = children()
    limits = MediaLimits(decode_deadline_s=0.3, backend=backend)
    started = time.monotonic()
    with pytest.raises(MediaDeadlineError, match=r"longer than 0.3 s") as caught:
        read_video(heavy, 128, limits=limits)
    # Far below the time of the whole decode, with slack for a slow machine.
    assert 0.3 <= time.monotonic() - started < 2
    assert caught.value.reason == "deadline"
    assert len(children()) == len(before) - 1
    assert len(read_video(mp4, 4).indices) == 4


def test_tiny_deadline(mp4: bytes) -> None:
    for _ in range(2):
        with pytest.raises(MediaDeadlineError):
            read_video(mp4, 60, limits=MediaLimits(decode_deadline_s=1e-3))
    assert len(read_video(mp4, 4).indices) == 4


def test_worker_that_crashes_on_a_video(heavy: bytes, mp4: bytes, worker: int) -> None:
    limits = MediaLimits(decode_workers=1)
    timer = threading.Timer(0.4, os.kill, (worker, signal.SIGSEGV))
    timer.start()
    with pytest.raises(MediaError, match="crashed") as caught:
        read_video(heavy, 128, limits=limits)
    timer.join()
    assert caught.value.reason == "decode_failed"
    assert type(caught.value) is MediaError
    assert len(read_video(mp4, 4, limits=limits).indices) == 4
    assert worker not in children()


@pytest.mark.parametrize("unseen", [False, True])
def test_idle_worker_that_dies_is_replaced(
    mp4: bytes, worker: int, unseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    if unseen:  # taken just before it could be reaped
        monkeypatch.setattr(Worker, "alive", lambda _: True)
    assert len(read_video(mp4, 4, limits=MediaLimits(decode_workers=1)).indices) == 4
    assert worker not in children()


def test_memory_is_capped(mp4: bytes) -> None:
    data = clips.one_big_frame(6000)
    limits = MediaLimits(max_frame_pixels=6000 * 6000, max_decoded_bytes=1 << 20, backend="pyav")
    with pytest.raises(MediaError) as caught:
        read_video(data, 1, limits=replace(limits, worker_memory_bytes=200 << 20))
    assert caught.value.reason == "decode_failed"
    assert len(read_video(mp4, 4).indices) == 4
    assert len(read_video(data, 1, limits=limits).indices) == 1


def test_damaged_videos_give_frames_or_media_errors(mp4: bytes) -> None:
    rng = random.Random(7)
    for _ in range(25):
        data = bytearray(mp4)
        for _ in range(rng.choice([1, 20, 200])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        # Anything but a MediaError fails the test.
        with contextlib.suppress(MediaError):
            video = read_video(bytes(data), 8)
            assert len(video.frames_THWC) == len(video.indices) == len(video.timestamps_s) > 0
    assert len(read_video(mp4, 4).indices) == 4


def test_no_files_or_processes_leak(mp4: bytes, tmp_path: Path) -> None:
    for _ in range(4):
        read_video(mp4, 8)
    gc.collect()
    files, processes = len(os.listdir("/proc/self/fd")), children()
    named = {*os.listdir("/dev/shm"), *os.listdir("/tmp")}
    for number in range(50):
        if number % 5 == 4:
            with pytest.raises(MediaError):
                read_video(mp4[:2000], 8)
        else:
            read_video(mp4, 8)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    assert children() == processes
    (worker, *_) = processes
    # 0, 1, 2: all else was closed with its video; the last may still be going.
    assert len(os.listdir(f"/proc/{worker}/fd")) <= 5
    assert not [
        name
        for name in {*os.listdir("/dev/shm"), *os.listdir("/tmp")} - named
        if "metok" in name or "video" in name
    ]


def test_threads_share_few_workers(mp4: bytes) -> None:
    limits = MediaLimits(decode_workers=2)
    other = clips.encode(size=(96, 64), options={"g": "12"})
    expected = {data: clips.decode_all(data)[0] for data in (mp4, other)}
    most = 0

    def read(number: int) -> None:
        nonlocal most
        data = (mp4, other)[number % 2]
        video = read_video(data, 5 + number % 3, limits=limits)
        np.testing.assert_array_equal(video.frames_THWC, expected[data][video.indices])
        most = max(most, len(children()))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(40)))
    assert 1 <= most <= 2


def test_one_deadline_does_not_touch_the_others(heavy: bytes, mp4: bytes) -> None:
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(read_video, heavy, 128, limits=MediaLimits(decode_deadline_s=0.5))
        while not slow.done():
            assert len(read_video(mp4, 4).indices) == 4
        assert isinstance(slow.exception(), MediaDeadlineError)
