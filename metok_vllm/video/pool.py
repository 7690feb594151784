"""Decode workers: started when first needed, kept, killed at a deadline, replaced when gone.

A worker is used by whoever's turn it is, for one job at a time.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, BinaryIO, Generic, TypeVar

from metok_vllm.errors import MediaDeadlineError, MediaError
from metok_vllm.video.channel import ChannelClosedError
from metok_vllm.video.frame_cache import FRAMES
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import MemoryBudget, Reservation
from metok_vllm.video.replies import max_reply_bytes
from metok_vllm.video.requester import Requester, current
from metok_vllm.video.turn import Turn
from metok_vllm.video.turns import Turns
from metok_vllm.video.worker_process import Worker, WorkerGoneError

T = TypeVar("T")


class _AgainError(Exception):
    """The video needs another turn: it is heavy, or was ended for others."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """What a worker shall do with `file`; `take` reads its checked reply into reserved memory.

    `num_bytes` bounds the frames, `num_frames` their number. `what` names the media in messages.
    Frames that are not `kept` by the request are gone when it goes on.
    """

    request: dict[str, Any]
    file: BinaryIO
    num_frames: int
    num_bytes: int
    limits: MediaLimits
    take: Callable[[dict[str, Any], BinaryIO | None, Reservation], T]
    what: str = "video"
    kept: bool = True


class DecodePool:
    """At most as many workers as asked for, each with one job at a time. Thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.turns = Turns(MemoryBudget(FRAMES.drop_oldest))
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    def run(self, job: Job[T]) -> T:
        """Have a worker do `job` when its turn comes, for the current requester.

        Raises MediaBusyError after waiting for `decode_deadline_s`, MediaDeadlineError after
        decoding for that long, MediaError when the worker dies, MediaAbandonedError when the
        requester leaves.
        """
        requester, limits = current(), job.limits
        deadline = time.monotonic() + limits.decode_deadline_s
        account = requester if job.kept else Requester()
        heavy = False
        while True:
            turn = Turn(requester, job.num_bytes, limits, heavy, account)
            try:
                with requester.on_leave(partial(self.turns.abandon, turn)):
                    return self._in_turn(job, turn, deadline - time.monotonic())
            except _AgainError:
                heavy = True

    def close(self) -> None:
        """End all workers; wake and refuse everybody who waits, and whoever comes later."""
        self.turns.close()
        self.end_workers()

    def end_workers(self) -> None:
        """End all workers; new ones are started when they are needed."""
        with self._lock:
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.kill()

    def forget(self) -> None:
        """In a forked child: let go of the parent's workers, which would outlive it otherwise."""
        workers = self._all
        self._reset()
        for worker in workers:
            worker.socket.close()
            worker.process.returncode = 0  # not this process's child: nothing to reap

    def _in_turn(self, job: Job[T], turn: Turn, wait_s: float) -> T:
        self.turns.wait(turn, wait_s)
        again = False
        try:
            while True:
                try:
                    worker, fresh = self._take()
                except MediaError:
                    if turn.ended:  # the server ends, and with it a worker that was starting
                        raise _stopped(turn) from None
                    raise
                try:
                    return self._ask(worker, job, turn)
                except WorkerGoneError:
                    if turn.ended:
                        raise _stopped(turn) from None
                    # One that died idle is seen to be gone only once it is reaped.
                    if fresh:
                        raise MediaError(
                            f"the {job.what} decoder cannot run", "decode_failed"
                        ) from None
        except _AgainError:
            again = True
            raise
        finally:
            self.turns.release(turn, again=again)

    def _ask(self, worker: Worker, job: Job[T], turn: Turn) -> T:
        limits, started = job.limits, time.monotonic()
        request = {**job.request, "limits": asdict(limits), "light": not turn.heavy}
        assert turn.memory is not None, "a turn without memory"
        if not self.turns.begin(turn, worker.process.kill):
            self._put_back(worker)
            raise _stopped(turn)
        try:
            reply, file = worker.call(
                request, job.file, limits.decode_deadline_s, max_reply_bytes(job.num_frames)
            )
            with file or nullcontext():
                if reply.get("heavy") is True and not turn.heavy:
                    raise _AgainError
                answer = job.take(reply, file, turn.memory)
        except (MediaError, _AgainError):
            self._finish(worker, turn)
            raise
        except BaseException as error:
            self._discard(worker)
            if isinstance(error, ChannelClosedError | TimeoutError) and turn.ended:
                raise _stopped(turn) from None
            # A thread that is kept from running that long finds the worker ended by its alarm.
            late = time.monotonic() - started >= limits.decode_deadline_s
            if isinstance(error, TimeoutError) or (late and isinstance(error, ChannelClosedError)):
                raise MediaDeadlineError(
                    f"reading the {job.what} took longer than {limits.decode_deadline_s:g} s, "
                    f"the limit of this server"
                ) from None
            if isinstance(error, ChannelClosedError):
                raise MediaError(
                    f"the decoder crashed on the {job.what}", "decode_failed"
                ) from None
            raise
        self._finish(worker, turn)
        return answer

    def _finish(self, worker: Worker, turn: Turn) -> None:
        """Keep the worker for the next turn, unless it was ended for others a moment ago."""
        self.turns.finish(turn)
        if turn.ended:
            self._discard(worker)
        else:
            self._put_back(worker)

    def _put_back(self, worker: Worker) -> None:
        with self._lock:
            if worker in self._all:
                self._idle.append(worker)

    def _take(self) -> tuple[Worker, bool]:
        """A worker, and whether it was started for this."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start(), True
            if worker.alive():
                return worker, False
            self._discard(worker)

    def _start(self) -> Worker:
        worker: Worker | None = None
        try:
            worker = Worker()
            with self._lock:
                self._all.add(worker)
            worker.wait_until_ready()
        except BaseException as error:
            if worker is not None:
                self._discard(worker)
            if isinstance(error, TimeoutError | ChannelClosedError | OSError):
                raise MediaError("the decoder cannot be started", "decode_failed") from error
            raise
        return worker

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()


def _stopped(turn: Turn) -> Exception:
    """Why a turn ended before its video was read."""
    return turn.refusal or _AgainError()


POOL = DecodePool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.forget)
