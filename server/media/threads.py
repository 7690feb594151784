"""Threads that fetch and decode media, so that neither blocks the server's event loop.

A worker thread runs in a copy of its request's context. When the request is cancelled, its
requester leaves, which ends the decoding for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, TypeVar

from vllm.multimodal.media.connector import global_thread_pool

from metok_vllm.video.requester import REQUESTER, current

T = TypeVar("T")

# A thread resolves one name at a time, and the system's resolver may take many seconds.
LOOKUP_THREADS = 64


class FetchLoop:
    """An event loop in a daemon thread that runs all fetches; started at the first one.

    A hostile host can make parsing slow (one-byte chunks, endless interim responses).
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the caller is. Any loop may call it."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        return await asyncio.wrap_future(future)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                loop.set_default_executor(
                    ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="metok-lookup")
                )
                threading.Thread(target=loop.run_forever, name="metok-fetch", daemon=True).start()
                self._loop = loop
            return self._loop


FETCH_LOOP = FetchLoop()
# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=FETCH_LOOP._reset)


async def in_shared_thread(work: Callable[[], T]) -> T:
    """`work` in one of vLLM's few media threads, for work that does not wait for a decoder."""
    loop = asyncio.get_running_loop()
    return await _leave_if_cancelled(
        lambda context: loop.run_in_executor(global_thread_pool, context.run, work)
    )


async def in_own_thread(work: Callable[[], T]) -> T:
    """`work` in a new thread, for work that may wait for a decoder.

    In the shared pool it would block the images of other clients. The limit on waiting videos
    bounds the threads. They are daemons, so they do not delay the end of the process.
    """
    return await _leave_if_cancelled(
        lambda context: asyncio.wrap_future(_run_in_daemon(context, work))
    )


async def _leave_if_cancelled(start: Callable[[Context], asyncio.Future[T]]) -> T:
    requester, context = current(), copy_context()
    context.run(REQUESTER.set, requester)
    try:
        return await start(context)
    except asyncio.CancelledError:
        requester.finish()
        raise


def run_in_new_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, for callers that may already be inside an event loop."""
    return _run_in_daemon(copy_context(), lambda: asyncio.run(coroutine)).result()


def _run_in_daemon(context: Context, work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def target() -> None:
        # Not cancellable from here on, so that setting the result below cannot fail.
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = context.run(work)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=target, name="metok-media", daemon=True).start()
    return future
