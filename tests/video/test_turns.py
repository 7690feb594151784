"""Whose turn it is to be decoded: fair between clients, bounded, and nobody waits for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from metok_vllm.errors import MediaBusyError, MediaError
from metok_vllm.video import turns as module
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import MemoryBudget
from metok_vllm.video.requester import Requester
from metok_vllm.video.turn import Turn
from metok_vllm.video.turns import Turns
from tests.waiting import wait_until

ONE, TWO = MediaLimits(decode_workers=1), MediaLimits(decode_workers=2)


class Queue:
    """Videos that ask for turns, each in a thread, until they are told that they are done."""

    def __init__(self, limits: MediaLimits = ONE, wait_s: float = 30) -> None:
        self.turns = Turns(MemoryBudget())
        self.limits, self.wait_s = limits, wait_s
        self.begun: list[str] = []
        self.refused: dict[str, MediaError] = {}
        self._running: dict[str, Turn] = {}

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
        turn = Turn(requester, num_bytes, self.limits, heavy, requester)
        threading.Thread(target=self._wait, args=(name, turn), daemon=True).start()
        known = (*self.turns._running, *self.turns._waiting)
        wait_until(lambda: turn in known or self._settled(name, turn), 5)
        return requester

    def _settled(self, name: str, turn: Turn) -> bool:
        return name in self.refused or turn in (*self.turns._running, *self.turns._waiting)

    def _wait(self, name: str, turn: Turn) -> None:
        with turn.requester.on_leave(lambda: self.turns.abandon(turn)):
            try:
                self.turns.wait(turn, self.wait_s)
            except MediaError as error:
                self.refused[name] = error
                return
        self._running[name] = turn
        self.begun.append(name)

    def end(self, name: str) -> None:
        """The video is decoded."""
        wait_until(lambda: name in self._running, 5)
        self.turns.release(self._running.pop(name))

    def order(self, names: str) -> list[str]:
        """The order in which these are decoded, one after the other, by one decoder."""
        for count in range(1, len(names.split()) + 1):
            wait_until(lambda count=count: len(self.begun) >= count, 5)  # type: ignore[misc]
            self.end(self.begun[count - 1])
        return self.begun


def killed_by(turns: Turns, turn: Turn) -> Callable[[], bool]:
    """Whether the decoder of a running turn was killed."""
    kills: list[Turn] = []
    assert turns.begin(turn, lambda: kills.append(turn))
    return lambda: bool(kills)


def test_clients_take_turns() -> None:
    queue = Queue()
    for name in ("a1", "a2", "a3", "a4"):
        queue.ask(name, "a")
    for name in ("b1", "b2"):
        queue.ask(name, "b")
    queue.ask("c1", "c")
    assert queue.order("a1 a2 a3 a4 b1 b2 c1") == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_heavy_videos_leave_a_decoder_to_others() -> None:
    queue = Queue(TWO)
    queue.ask("light")
    for name in ("heavy1", "heavy2", "heavy3"):
        queue.ask(name, heavy=True)
    wait_until(lambda: queue.begun == ["light", "heavy1"], 5)
    queue.ask("light2")
    queue.end("light")
    wait_until(lambda: queue.begun[2:] == ["light2"], 5)
    queue.end("heavy1")
    wait_until(lambda: queue.begun[3:] == ["heavy2"], 5)
    # With nobody else there they may have all, until somebody comes.
    queue.end("light2")
    wait_until(lambda: queue.begun[4:] == ["heavy3"], 5)
    guest = queue._running["heavy3"]
    killed = killed_by(queue.turns, guest)
    queue.ask("light3")
    assert killed()
    assert guest.preempted
    queue.turns.release(guest, again=True)
    wait_until(lambda: queue.begun[5:] == ["light3"], 5)


def test_one_decoder_serves_both_kinds_in_turn() -> None:
    queue = Queue()
    for name in ("light1", "light2", "light3"):
        queue.ask(name)
    for name in ("heavy1", "heavy2"):
        queue.ask(name, heavy=True)
    order = queue.order("light1 light2 light3 heavy1 heavy2")
    assert order == ["light1", "heavy1", "light2", "heavy2", "light3"]


def test_what_takes_long_makes_room_whatever_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAVY_S", 0.2)
    queue = Queue(TWO)
    queue.ask("slow1")
    queue.ask("slow2")
    wait_until(lambda: len(queue.begun) == 2, 5)
    killed = [killed_by(queue.turns, queue._running[name]) for name in ("slow1", "slow2")]
    queue.ask("other")
    wait_until(killed[1], 5)
    assert not killed[0]()


def test_waiting_ends_with_429() -> None:
    queue = Queue(wait_s=0.2)
    queue.ask("a")
    started = time.monotonic()
    queue.ask("b")
    wait_until(lambda: "b" in queue.refused, 5)
    assert 0.2 <= time.monotonic() - started < 2
    assert (queue.refused["b"].status, queue.refused["b"].reason) == (429, "busy")
    assert "try again later" in str(queue.refused["b"])


def test_memory_that_others_hold_for_too_long_is_429() -> None:
    queue = Queue(MediaLimits(decode_workers=2, max_pending_bytes=10), wait_s=0.2)
    queue.ask("a", num_bytes=10)
    queue.ask("b", num_bytes=1)
    wait_until(lambda: "b" in queue.refused, 5)
    assert queue.refused["b"].status == 429
    assert "(10 bytes)" in str(queue.refused["b"])


def test_so_many_may_wait_and_each_client_has_its_share() -> None:
    queue = Queue(MediaLimits(decode_workers=1, max_waiting=4))
    for number in range(6):
        queue.ask(f"a{number}", "a")
    wait_until(lambda: "a5" in queue.refused, 5)
    assert isinstance(queue.refused["a5"], MediaBusyError)
    # The one that fills the queue makes room, its last first, until all have the same.
    queue.ask("b1", "b")
    queue.ask("b2", "b")
    queue.ask("b3", "b")
    wait_until(lambda: {"a4", "a3", "b3"} <= queue.refused.keys(), 5)
    assert len(queue.turns._waiting) == 4
    assert queue.order("a0 b1 a1 b2 a2") == ["a0", "b1", "a1", "b2", "a2"]


def test_large_videos_are_not_starved_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones that come all the time always fit; the large one never did."""
    monkeypatch.setattr(module, "MEMORY_PATIENCE_S", 0.1)
    limits = MediaLimits(decode_workers=3, max_pending_bytes=10)
    queue = Queue(limits)
    queue.ask("small0", num_bytes=4)
    queue.ask("small1", num_bytes=4)
    queue.ask("large", num_bytes=9)
    wait_until(lambda: queue.turns._waiting[0].blocked, 5)
    time.sleep(0.15)
    queue.ask("small2", num_bytes=1)
    assert "small2" not in queue.begun
    queue.end("small0")
    queue.end("small1")
    wait_until(lambda: sorted(queue.begun[2:]) == ["large", "small2"], 5)


def test_requests_that_may_ask_for_all_memory_hold_up_no_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second of them can only begin when the first ends; others need not wait for that."""
    monkeypatch.setattr(module, "MEMORY_PATIENCE_S", 0.1)
    queue = Queue(MediaLimits(decode_workers=4, max_pending_bytes=80))
    queue.ask("large1", num_bytes=10, videos=8)
    queue.ask("large2", num_bytes=10, videos=8)
    wait_until(lambda: queue.turns._waiting[0].blocked, 5)
    time.sleep(0.15)
    queue.ask("small", num_bytes=10)
    wait_until(lambda: queue.begun == ["large1", "small"], 2)


def test_who_leaves_waits_no_longer_and_is_not_decoded_on() -> None:
    queue = Queue()
    running = queue.ask("running")
    waiting = queue.ask("waiting")
    wait_until(lambda: "running" in queue._running, 5)
    turn = queue._running["running"]
    killed = killed_by(queue.turns, turn)
    waiting.leave()
    wait_until(lambda: "waiting" in queue.refused, 1)
    queue.turns.abandon(turn)
    assert killed()
    assert turn.refusal is not None
    assert running is turn.requester
    queue.turns.release(turn)
    queue.turns.abandon(turn)  # too late to harm anybody
    queue.ask("next")
    wait_until(lambda: queue.begun[-1] == "next", 5)


def test_the_end_of_the_server_wakes_everybody() -> None:
    queue = Queue()
    for name in ("a", "b", "c"):
        queue.ask(name)
    wait_until(lambda: "a" in queue._running, 5)
    killed = killed_by(queue.turns, queue._running["a"])
    queue.turns.close()
    wait_until(lambda: queue.refused.keys() == {"b", "c"}, 1)
    assert killed()
    queue.ask("d")
    wait_until(lambda: "d" in queue.refused, 1)


def test_many_threads_get_all_their_turns() -> None:
    turns = Turns(MemoryBudget())
    limits = MediaLimits(decode_workers=3, max_pending_bytes=100, max_waiting=1000)
    lock, now, most = threading.Lock(), 0, 0

    def work(number: int) -> None:
        nonlocal now, most
        requester = Requester(f"client {number % 3}", videos=1)
        for step in range(20):
            turn = Turn(requester, 1 + (number + step) % 60, limits, step % 4 == 0, requester)
            turns.wait(turn, 30)
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.0005)
            with lock:
                now -= 1
            turns.release(turn, again=turn.preempted)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert most == 3
    turns.memory.collect()
    assert turns.memory.used == 0
    assert turns._served == {}
