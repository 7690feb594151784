"""The order of decoding: fair between clients, bounded in time, length and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from metok_vllm.errors import MediaBusyError, MediaError
from metok_vllm.video import decode_queue
from metok_vllm.video.decode_queue import DecodeQueue
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import MemoryBudget
from metok_vllm.video.queue_entry import QueueEntry
from metok_vllm.video.requester import Requester
from tests.waiting import wait_until

ONE, TWO = MediaLimits(decode_workers=1), MediaLimits(decode_workers=2)


class Videos:
    """Videos in a queue, each waiting in a thread of its own; `end` finishes one."""

    def __init__(self, limits: MediaLimits = ONE, wait_s: float = 30) -> None:
        self.queue = DecodeQueue(MemoryBudget())
        self.limits, self.wait_s = limits, wait_s
        self.begun: list[str] = []
        self.refused: dict[str, MediaError] = {}
        self._running: dict[str, QueueEntry] = {}

    def ask(
        self,
        name: str,
        client: str = "",
        *,
        heavy: bool = False,
        num_bytes: int = 1,
        videos: int = 1,
    ) -> Requester:
        """Returns once the video waits, is decoded or is refused."""
        requester = Requester(client, videos=videos)
        entry = QueueEntry(requester, num_bytes, self.limits, heavy, requester)
        threading.Thread(target=self._wait, args=(name, entry), daemon=True).start()
        known = (*self.queue._running, *self.queue._waiting)
        wait_until(lambda: entry in known or self._settled(name, entry), 5)
        return requester

    def _settled(self, name: str, entry: QueueEntry) -> bool:
        return name in self.refused or entry in (*self.queue._running, *self.queue._waiting)

    def _wait(self, name: str, entry: QueueEntry) -> None:
        with entry.requester.on_finish(lambda: self.queue.cancel(entry)):
            try:
                self.queue.wait(entry, self.wait_s)
            except MediaError as error:
                self.refused[name] = error
                return
        self._running[name] = entry
        self.begun.append(name)

    def end(self, name: str) -> None:
        """The video is decoded."""
        wait_until(lambda: name in self._running, 5)
        self.queue.release(self._running.pop(name))

    def order(self, names: str) -> list[str]:
        """The order in which these are decoded, one after the other, by one decoder."""
        for count in range(1, len(names.split()) + 1):
            wait_until(lambda count=count: len(self.begun) >= count, 5)  # type: ignore[misc]
            self.end(self.begun[count - 1])
        return self.begun


def killed_by(queue: DecodeQueue, entry: QueueEntry) -> Callable[[], bool]:
    """Whether the decoder of a running entry was killed."""
    kills: list[QueueEntry] = []
    assert queue.start(entry, lambda: kills.append(entry))
    return lambda: bool(kills)


def test_clients_take_turns() -> None:
    videos = Videos()
    for name in ("a1", "a2", "a3", "a4"):
        videos.ask(name, "a")
    for name in ("b1", "b2"):
        videos.ask(name, "b")
    videos.ask("c1", "c")
    assert videos.order("a1 a2 a3 a4 b1 b2 c1") == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_heavy_videos_leave_a_decoder_to_others() -> None:
    videos = Videos(TWO)
    videos.ask("light")
    for name in ("heavy1", "heavy2", "heavy3"):
        videos.ask(name, heavy=True)
    wait_until(lambda: videos.begun == ["light", "heavy1"], 5)
    videos.ask("light2")
    videos.end("light")
    wait_until(lambda: videos.begun[2:] == ["light2"], 5)
    videos.end("heavy1")
    wait_until(lambda: videos.begun[3:] == ["heavy2"], 5)
    # Without light videos, heavy ones may hold all decoders.
    videos.end("light2")
    wait_until(lambda: videos.begun[4:] == ["heavy3"], 5)
    guest = videos._running["heavy3"]
    killed = killed_by(videos.queue, guest)
    videos.ask("light3")
    assert killed()
    assert guest.preempted
    videos.queue.release(guest, again=True)
    wait_until(lambda: videos.begun[5:] == ["light3"], 5)


def test_one_decoder_alternates_between_light_and_heavy() -> None:
    videos = Videos()
    for name in ("light1", "light2", "light3"):
        videos.ask(name)
    for name in ("heavy1", "heavy2"):
        videos.ask(name, heavy=True)
    order = videos.order("light1 light2 light3 heavy1 heavy2")
    assert order == ["light1", "heavy1", "light2", "heavy2", "light3"]


def test_long_decoding_counts_as_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_queue, "HEAVY_S", 0.2)
    videos = Videos(TWO)
    videos.ask("slow1")
    videos.ask("slow2")
    wait_until(lambda: len(videos.begun) == 2, 5)
    killed = [killed_by(videos.queue, videos._running[name]) for name in ("slow1", "slow2")]
    videos.ask("other")
    wait_until(killed[1], 5)
    assert not killed[0]()


def test_waiting_ends_with_429() -> None:
    videos = Videos(wait_s=0.2)
    videos.ask("a")
    started = time.monotonic()
    videos.ask("b")
    wait_until(lambda: "b" in videos.refused, 5)
    assert 0.2 <= time.monotonic() - started < 2
    assert (videos.refused["b"].status, videos.refused["b"].reason) == (429, "busy")
    assert "try again later" in str(videos.refused["b"])


def test_memory_that_others_hold_for_too_long_is_429() -> None:
    videos = Videos(MediaLimits(decode_workers=2, max_pending_bytes=10), wait_s=0.2)
    videos.ask("a", num_bytes=10)
    videos.ask("b", num_bytes=1)
    wait_until(lambda: "b" in videos.refused, 5)
    assert videos.refused["b"].status == 429
    assert "(10 bytes, --metok-media-max-pending-bytes)" in str(videos.refused["b"])


def test_a_full_queue_refuses_the_client_with_most_waiting() -> None:
    videos = Videos(MediaLimits(decode_workers=1, max_waiting=4))
    for number in range(6):
        videos.ask(f"a{number}", "a")
    wait_until(lambda: "a5" in videos.refused, 5)
    assert isinstance(videos.refused["a5"], MediaBusyError)
    # The client with most waiting videos loses its last ones, until all clients have the same.
    videos.ask("b1", "b")
    videos.ask("b2", "b")
    videos.ask("b3", "b")
    wait_until(lambda: {"a4", "a3", "b3"} <= videos.refused.keys(), 5)
    assert len(videos.queue._waiting) == 4
    assert videos.order("a0 b1 a1 b2 a2") == ["a0", "b1", "a1", "b2", "a2"]


def test_large_videos_are_not_starved_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small videos that keep arriving always fit, and must not pass the large one for ever."""
    monkeypatch.setattr(decode_queue, "MEMORY_PATIENCE_S", 0.1)
    limits = MediaLimits(decode_workers=3, max_pending_bytes=10)
    videos = Videos(limits)
    videos.ask("small0", num_bytes=4)
    videos.ask("small1", num_bytes=4)
    videos.ask("large", num_bytes=9)
    wait_until(lambda: videos.queue._waiting[0].blocked, 5)
    time.sleep(0.15)
    videos.ask("small2", num_bytes=1)
    assert "small2" not in videos.begun
    videos.end("small0")
    videos.end("small1")
    wait_until(lambda: sorted(videos.begun[2:]) == ["large", "small2"], 5)


def test_claims_on_all_memory_do_not_block_small_videos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second large request starts when the first ends; a small one starts before."""
    monkeypatch.setattr(decode_queue, "MEMORY_PATIENCE_S", 0.1)
    videos = Videos(MediaLimits(decode_workers=4, max_pending_bytes=80))
    videos.ask("large1", num_bytes=10, videos=8)
    videos.ask("large2", num_bytes=10, videos=8)
    wait_until(lambda: videos.queue._waiting[0].blocked, 5)
    time.sleep(0.15)
    videos.ask("small", num_bytes=10)
    wait_until(lambda: videos.begun == ["large1", "small"], 2)


def test_finished_requests_are_neither_queued_nor_decoded() -> None:
    videos = Videos()
    running = videos.ask("running")
    waiting = videos.ask("waiting")
    wait_until(lambda: "running" in videos._running, 5)
    entry = videos._running["running"]
    killed = killed_by(videos.queue, entry)
    waiting.finish()
    wait_until(lambda: "waiting" in videos.refused, 1)
    videos.queue.cancel(entry)
    assert killed()
    assert entry.refusal is not None
    assert running is entry.requester
    videos.queue.release(entry)
    videos.queue.cancel(entry)  # has no effect any more
    videos.ask("next")
    wait_until(lambda: videos.begun[-1] == "next", 5)


def test_closing_refuses_all_waiting_videos() -> None:
    videos = Videos()
    for name in ("a", "b", "c"):
        videos.ask(name)
    wait_until(lambda: "a" in videos._running, 5)
    killed = killed_by(videos.queue, videos._running["a"])
    videos.queue.close()
    wait_until(lambda: videos.refused.keys() == {"b", "c"}, 1)
    assert killed()
    videos.ask("d")
    wait_until(lambda: "d" in videos.refused, 1)


def test_many_threads_all_get_decoders() -> None:
    queue = DecodeQueue(MemoryBudget())
    limits = MediaLimits(decode_workers=3, max_pending_bytes=100, max_waiting=1000)
    lock, now, most = threading.Lock(), 0, 0

    def work(number: int) -> None:
        nonlocal now, most
        requester = Requester(f"client {number % 3}", videos=1)
        for step in range(20):
            entry = QueueEntry(
                requester, 1 + (number + step) % 60, limits, step % 4 == 0, requester
            )
            queue.wait(entry, 30)
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.0005)
            with lock:
                now -= 1
            queue.release(entry, again=entry.preempted)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert most == 3
    queue.memory.collect()
    assert queue.memory.used == 0
    assert queue._served == {}
