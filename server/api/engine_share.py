"""The engine's places, shared between clients: one that fills it does not shut others out.

vLLM runs requests in the order they come, up to `max_num_seqs`. A client with that many long
answers would let everybody else wait for the end of one. So some places are kept from it: what it
sends beyond its share waits here, in order, while requests of others go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from vllm.outputs import RequestOutput

from metok_vllm.video.requester import current

# One of so many places is kept from a client that holds all the others.
PLACES_A_RESERVE = 16


class EngineShare:
    """At most `most` sequences of each client at once. Lives in one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @asynccontextmanager
    async def places(self, client: str, count: int) -> AsyncIterator[None]:
        """Hold places for `count` sequences, or all of a share where it is smaller."""
        count = min(count, self.most)
        await self._take(client, count)
        try:
            yield
        finally:
            self._give_back(client, count)

    async def _take(self, client: str, count: int) -> None:
        queue = self._waiting.setdefault(client, deque())
        if not queue and self._held.get(client, 0) + count <= self.most:
            self._held[client] = self._held.get(client, 0) + count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._grant(client)  # it stood before others that fit
            else:
                self._give_back(client, count)  # it was given in the same moment
            raise

    def _give_back(self, client: str, count: int) -> None:
        self._held[client] -= count
        self._grant(client)

    def _grant(self, client: str) -> None:
        queue = self._waiting.get(client, deque())
        held = self._held.get(client, 0)
        while queue and (queue[0][1].cancelled() or held + queue[0][0] <= self.most):
            count, turn = queue.popleft()
            if not turn.cancelled():
                held += count
                turn.set_result(None)
        self._held[client] = held
        if not held and not queue:
            del self._held[client]
            self._waiting.pop(client, None)


def share_places(engine_client: Any) -> None:
    """Let requests of an AsyncLLM wait for their client's share of its places."""
    config = engine_client.vllm_config
    places = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
    # Each API server knows only what it has sent itself.
    places = places // max(1, getattr(config.parallel_config, "_api_process_count", 1))
    share = EngineShare(max(1, places - places // PLACES_A_RESERVE))
    generate = engine_client.generate

    def generate_in_turn(
        prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Read here: the generator may run in the context of another task.
        client = current().client

        async def outputs() -> AsyncGenerator[RequestOutput, None]:
            async with share.places(client, sampling_params.n):
                stream = generate(prompt, sampling_params, *args, **kwargs)
                async with aclosing(stream):
                    async for output in stream:
                        yield output

        return outputs()

    engine_client.generate = generate_in_turn
