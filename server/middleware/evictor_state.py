"""The block evictor's state for users: two metrics, and `GET /metok/books` for debugging.

The engine is asked when a client reads them. It answers between two steps, which may take a
while, so a scrape waits briefly and then shows the last values.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm import metrics
from metok_vllm.server.engine_client import call_workers
from metok_vllm.server.middleware.access import METRICS_PATHS, route_path
from metok_vllm.server.middleware.envelope import error_response
from metok_vllm.server.middleware.high_water import CounterHighWater

logger = logging.getLogger("vllm.metok")

SCRAPE_WAIT_S = 1.0
DEBUG_WAIT_S = 5.0
NO_EVICTOR = (
    "This server has no block evictor, because METok's stages 2 and 3 are off. Start it with "
    "--metok-stages '[1, 2, 3]'."
)
BUSY = "The engine is in the middle of a step. Try again later."

State = dict[str, Any]
router = APIRouter()


class EvictorStates:
    """Reads the evictor state of every engine behind this server, and updates the metrics."""

    def __init__(self, engine_client: Any) -> None:
        self._engine_client = engine_client
        self._freed_blocks = CounterHighWater()
        self._running: asyncio.Task[list[State]] | None = None

    async def read(self, wait_s: float) -> list[State] | None:
        """The state of each engine; None if the answer takes longer than `wait_s` seconds.

        A read joins one that is running. Raises what the call raises, such as EngineDeadError.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._read())
            self._running.add_done_callback(self._update_metrics)
        running = self._running
        await asyncio.wait({running}, timeout=wait_s)
        return running.result() if running.done() else None

    async def _read(self) -> list[State]:
        engines = await call_workers(self._engine_client, "metok_evictor_state")
        # The workers of a tensor-parallel group have equal states.
        states = [next((s for s in workers if s is not None), None) for workers in engines]
        return [{**state, "held_blocks": held_blocks(state)} for state in states if state]

    def _update_metrics(self, done: asyncio.Task[list[State]]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        states = done.result()
        metrics.set_blocks_held(sum(state["held_blocks"] for state in states))
        metrics.set_prefix_records(sum(state["prefix_records"] for state in states))
        freed = self._freed_blocks.increase([state["freed_blocks"] for state in states])
        metrics.count_blocks_freed(freed)


def held_blocks(state: State) -> int:
    """KV blocks that METok requests hold, over all cache groups."""
    requests = state["requests"].values()
    return sum(sum(request["blocks"]) for request in requests if request["metok"])


class EvictorMetrics:
    """Updates the evictor's metrics before `/metrics` is answered. Its errors fail no scrape."""

    def __init__(self, app: ASGIApp, evictors: EvictorStates) -> None:
        self.app = app
        self.evictors = evictors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_scrape(scope):
            try:
                await self.evictors.read(SCRAPE_WAIT_S)
            except Exception:
                logger.debug("The block evictor's state could not be read.", exc_info=True)
        await self.app(scope, receive, send)


def is_scrape(scope: Scope) -> bool:
    """Whether the request reads the metrics."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    return route_path(scope) in METRICS_PATHS


@router.get("/metok/books")
async def metok_books(raw_request: Request) -> Response:
    """Blocks and tokens by request, and the block pool, of every engine. Needs the API key.

    404 where stages 2 and 3 are off, 503 while the engine is busy.
    """
    evictors: EvictorStates | None = raw_request.app.state.metok_evictors
    if evictors is None:
        return error_response(404, NO_EVICTOR)
    engines = await evictors.read(DEBUG_WAIT_S)
    if engines is None:
        return error_response(503, BUSY)
    return JSONResponse({"engines": engines})
