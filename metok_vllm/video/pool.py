"""Decode workers: started on demand, reused, killed at a deadline, replaced when they exit."""

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
from metok_vllm.video.decode_queue import DecodeQueue
from metok_vllm.video.frame_cache import FRAMES
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.memory import MemoryBudget, Reservation
from metok_vllm.video.queue_entry import QueueEntry
from metok_vllm.video.replies import max_reply_bytes
from metok_vllm.video.requester import Requester, current
from metok_vllm.video.worker_process import Worker, WorkerExitedError

T = TypeVar("T")


class _RequeueError(Exception):
    """The video must queue again: it is heavy, or was preempted."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """Work on `file` for a worker; `take` reads its checked reply into reserved memory.

    The sample has at most `num_frames` frames of `num_bytes` together. `what` names the media in
    messages. `kept`: the request holds the frames until it ends, so they count as its memory.
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
    """At most `MediaLimits.decode_workers` workers, each with one job at a time. Thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.queue = DecodeQueue(MemoryBudget(FRAMES.drop_oldest))
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    def run(self, job: Job[T]) -> T:
        """Queue `job` for the current requester, and run it in a worker.

        Raises MediaBusyError after waiting for `decode_deadline_s`, MediaDeadlineError after
        decoding for that long, MediaError when the worker dies, MediaAbandonedError when the
        request or the server ends.
        """
        requester, limits = current(), job.limits
        deadline = time.monotonic() + limits.decode_deadline_s
        account = requester if job.kept else Requester()
        heavy = False
        while True:
            entry = QueueEntry(requester, job.num_bytes, limits, heavy, account)
            try:
                with requester.on_finish(partial(self.queue.cancel, entry)):
                    return self._run_queued(job, entry, deadline - time.monotonic())
            except _RequeueError:
                heavy = True

    def close(self) -> None:
        """End all workers; refuse all waiting and later jobs."""
        self.queue.close()
        self.end_workers()

    def end_workers(self) -> None:
        """End all workers; later jobs start new ones."""
        with self._lock:
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.kill()

    def drop_inherited(self) -> None:
        """In a forked child: drop the parent's workers, which the child would keep alive."""
        workers = self._all
        self._reset()
        for worker in workers:
            worker.socket.close()
            worker.process.returncode = 0  # not this process's child: nothing to reap

    def _run_queued(self, job: Job[T], entry: QueueEntry, wait_s: float) -> T:
        self.queue.wait(entry, wait_s)
        again = False
        try:
            while True:
                try:
                    worker, fresh = self._take()
                except MediaError:
                    if entry.stopped:  # the end of the server kills starting workers too
                        raise _stop_reason(entry) from None
                    raise
                try:
                    return self._call(worker, job, entry)
                except WorkerExitedError:
                    if entry.stopped:
                        raise _stop_reason(entry) from None
                    # An idle worker may have exited unnoticed: try the next one.
                    if fresh:
                        raise MediaError(
                            f"the {job.what} decoder cannot run", "decode_failed"
                        ) from None
        except _RequeueError:
            again = True
            raise
        finally:
            self.queue.release(entry, again=again)

    def _call(self, worker: Worker, job: Job[T], entry: QueueEntry) -> T:
        limits, started = job.limits, time.monotonic()
        request = {**job.request, "limits": asdict(limits), "light": not entry.heavy}
        assert entry.memory is not None, "a running video without memory"
        if not self.queue.start(entry, worker.process.kill):
            self._put_back(worker)
            raise _stop_reason(entry)
        try:
            reply, file = worker.call(
                request, job.file, limits.decode_deadline_s, max_reply_bytes(job.num_frames)
            )
            with file or nullcontext():
                if reply.get("heavy") is True and not entry.heavy:
                    raise _RequeueError
                answer = job.take(reply, file, entry.memory)
        except (MediaError, _RequeueError):
            self._finish(worker, entry)
            raise
        except BaseException as error:
            self._discard(worker)
            if isinstance(error, ChannelClosedError | TimeoutError) and entry.stopped:
                raise _stop_reason(entry) from None
            # On a busy machine the worker's own alarm may end it before this thread times out.
            late = time.monotonic() - started >= limits.decode_deadline_s
            if isinstance(error, TimeoutError) or (late and isinstance(error, ChannelClosedError)):
                raise MediaDeadlineError(
                    f"reading the {job.what} took longer than {limits.decode_deadline_s:g} s, "
                    f"the limit of this server ({flag_of('decode_deadline_s')})"
                ) from None
            if isinstance(error, ChannelClosedError):
                raise MediaError(
                    f"the decoder crashed on the {job.what}", "decode_failed"
                ) from None
            raise
        self._finish(worker, entry)
        return answer

    def _finish(self, worker: Worker, entry: QueueEntry) -> None:
        """Keep the worker for the next job, unless it was killed a moment ago."""
        self.queue.finish(entry)
        if entry.stopped:
            self._discard(worker)
        else:
            self._put_back(worker)

    def _put_back(self, worker: Worker) -> None:
        with self._lock:
            if worker in self._all:
                self._idle.append(worker)

    def _take(self) -> tuple[Worker, bool]:
        """A worker, and whether it was started for this job."""
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


def _stop_reason(entry: QueueEntry) -> Exception:
    """Why an entry was stopped before its video was read."""
    return entry.refusal or _RequeueError()


POOL = DecodePool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.drop_inherited)
