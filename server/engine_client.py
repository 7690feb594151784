"""vLLM's engine client as this server uses it: worker calls, fair shares, and lost media.

Every request goes through `generate`, which is where the last two are added.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from vllm.outputs import RequestOutput

from metok_vllm.video.requester import current

logger = logging.getLogger("vllm.metok")

# One client may have all sequences but this fraction (a sixteenth), so that others get in.
RESERVED_FRACTION = 16

Render = Callable[[], Awaitable[Any]]
# Renders the current request a second time; set when it was rendered first.
RENDER_AGAIN: ContextVar[Render | None] = ContextVar("metok_render_again", default=None)


async def call_workers(engine_client: Any, method: str, *args: Any) -> list[list[Any]]:
    """The results of a worker method: one list per engine, one item per worker.

    vLLM's `collective_rpc` returns the results of the first engine only
    (v1/engine/core_client.py, DPLBAsyncMPClient). There is no timeout, because the next call
    would receive the late results of this one; callers limit their own waiting.
    """
    core = engine_client.engine_core
    results: list[list[Any]]
    results = await core.call_utility_all_async("collective_rpc", method, None, args, None)
    return results


class EngineShare:
    """At most `limit` running sequences per client; more of them wait in order.

    vLLM schedules requests in order of arrival up to `max_num_seqs`. Without a share, a client
    with that many long answers would delay all others. Use it from one event loop only.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._running: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @asynccontextmanager
    async def sequences(self, client: str, count: int) -> AsyncIterator[None]:
        """Wait until `client` may run `count` sequences (at most `limit`), and count them."""
        count = min(count, self.limit)
        await self._acquire(client, count)
        try:
            yield
        finally:
            self._release(client, count)

    async def _acquire(self, client: str, count: int) -> None:
        queue = self._waiting.setdefault(client, deque())
        if not queue and self._running.get(client, 0) + count <= self.limit:
            self._running[client] = self._running.get(client, 0) + count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._grant(client)  # the requests after it may fit now
            else:
                self._release(client, count)  # granted at the same moment
            raise

    def _release(self, client: str, count: int) -> None:
        self._running[client] -= count
        self._grant(client)

    def _grant(self, client: str) -> None:
        queue = self._waiting.get(client, deque())
        running = self._running.get(client, 0)
        while queue and (queue[0][1].cancelled() or running + queue[0][0] <= self.limit):
            count, turn = queue.popleft()
            if not turn.cancelled():
                running += count
                turn.set_result(None)
        self._running[client] = running
        if not running and not queue:
            del self._running[client]
            self._waiting.pop(client, None)


def limit_clients(engine_client: Any) -> None:
    """Make `generate` of an AsyncLLM wait for its client's share of the sequences."""
    config = engine_client.vllm_config
    total = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
    # Each API server counts only its own requests.
    total = total // max(1, getattr(config.parallel_config, "_api_process_count", 1))
    share = EngineShare(max(1, total - total // RESERVED_FRACTION))
    generate = engine_client.generate

    async def outputs(
        client: str, prompt: Any, sampling_params: Any, args: Any, kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        async with (
            share.sequences(client, sampling_params.n),
            aclosing(generate(prompt, sampling_params, *args, **kwargs)) as stream,
        ):
            async for output in stream:
                yield output

    def generate_in_turn(
        prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Read here, because the generator may run in the context of another task.
        return outputs(current().client, prompt, sampling_params, args, kwargs)

    engine_client.generate = generate_in_turn


class RetryingClient:
    """An engine client whose `generate` renders a request again if the engine lost its media.

    The API server's cache may list an item that the engine's cache has dropped. vLLM then ends
    the request with an error before its first token.
    """

    def __init__(self, engine_client: Any) -> None:
        self._client = engine_client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's."""
        # Read here, because the generator may run in the context of another task.
        render_again = RENDER_AGAIN.get()
        if render_again is not None:
            return self._generate(render_again, prompt, sampling_params, request_id, kwargs)
        outputs: AsyncGenerator[RequestOutput, None]
        outputs = self._client.generate(prompt, sampling_params, request_id, **kwargs)
        return outputs

    async def _generate(
        self,
        render_again: Render,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = self._client.generate(prompt, sampling_params, request_id, **kwargs)
        async with aclosing(outputs):
            has_output = False
            async for output in outputs:
                if not has_output and failed_before_first_token(output):
                    break
                has_output = True
                yield output
            else:
                return
        logger.info("The engine lacks media of request %s, which is sent again.", request_id)
        prompt = await render_again()
        outputs = self._client.generate(prompt, sampling_params, f"{request_id}-again", **kwargs)
        async with aclosing(outputs):
            async for output in outputs:
                yield output


def failed_before_first_token(output: RequestOutput) -> bool:
    """Whether the engine ended a request with an error before its first token."""
    choices = output.outputs
    return output.finished and all(c.finish_reason == "error" and not c.token_ids for c in choices)
