"""Where media are read: off the event loop, for the requester of the task that waits for them.

When that task is cancelled, its client is gone or out of time: the requester leaves, which ends
what is decoded for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from vllm.multimodal.media.connector import global_thread_pool

from metok_vllm.video.requester import REQUESTER, current

T = TypeVar("T")


async def in_shared_thread(work: Callable[[], T]) -> T:
    """`work` in one of vLLM's few threads for media: what never waits for anybody."""
    loop = asyncio.get_running_loop()
    return await _left_when_cancelled(
        lambda context: loop.run_in_executor(global_thread_pool, context.run, work)
    )


async def in_own_thread(work: Callable[[], T]) -> T:
    """`work` in a thread of its own, which may wait for its turn to decode.

    How many wait is bounded by the turns. The thread is a daemon: it must not keep the process
    from ending. Waiting threads of the shared pool would hold up images and other clients.
    """
    return await _left_when_cancelled(lambda context: _in_daemon(context, work))


async def _left_when_cancelled(start: Callable[[Context], asyncio.Future[T]]) -> T:
    requester, context = current(), copy_context()
    context.run(REQUESTER.set, requester)
    try:
        return await start(context)
    except asyncio.CancelledError:
        requester.leave()
        raise


def _in_daemon(context: Context, work: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, failure: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if failure is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(failure)

    def target() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = context.run(work)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=target, name="metok-media", daemon=True).start()
    return future


def run_beside(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, for callers that may stand inside a running event loop."""
    result: list[T] = []
    failure: list[BaseException] = []
    context = copy_context()

    def target() -> None:
        try:
            result.append(context.run(asyncio.run, coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
