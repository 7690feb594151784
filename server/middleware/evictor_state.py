"""The evictor's books, seen from outside: two metrics, and `GET /metok/books` for debugging.

The engine is asked when somebody wants to know. It answers between two steps, so a busy one may
take its time: then a scrape shows the last values, and no second question is asked meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm import metrics
from metok_vllm.server.engine_calls import ask_workers
from metok_vllm.server.middleware.counter_high_water import HighMarks
from metok_vllm.server.middleware.envelope import error_response
from metok_vllm.server.middleware.paths import METRICS_PATHS, route_path

logger = logging.getLogger("vllm.metok")

SCRAPE_WAIT_S = 1.0
DEBUG_WAIT_S = 5.0
NO_BOOKS = (
    "This server keeps no books: METok's stages 2 and 3 are off here. They are on with "
    "--metok-stages '[1, 2, 3]'."
)
BUSY = "The engine is in the middle of a step. Try again later."

Books = dict[str, Any]
router = APIRouter()


class EngineBooks:
    """The books of every engine behind this server. Every answer goes into the metrics."""

    def __init__(self, engine_client: Any) -> None:
        self._engine_client = engine_client
        self._marks = HighMarks()
        self._asking: asyncio.Task[list[Books]] | None = None

    async def read(self, wait_s: float) -> list[Books] | None:
        """Each engine's books now; None when the answer takes longer than `wait_s`.

        Raises what the call raises, such as vLLM's EngineDeadError.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
            self._asking.add_done_callback(self._take)
        asking = self._asking
        await asyncio.wait({asking}, timeout=wait_s)
        return asking.result() if asking.done() else None

    async def _ask(self) -> list[Books]:
        answers = await ask_workers(self._engine_client, "metok_books")
        # The workers of a tensor-parallel group all have the same to say.
        of_engine = [next((b for b in workers if b is not None), None) for workers in answers]
        return [{**books, "held_blocks": held_blocks(books)} for books in of_engine if books]

    def _take(self, asked: asyncio.Task[list[Books]]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        books = asked.result()
        metrics.set_blocks_held(sum(b["held_blocks"] for b in books))
        metrics.count_blocks_freed(self._marks.rise([b["freed_blocks"] for b in books]))


def held_blocks(books: Books) -> int:
    """Blocks that METok requests hold, over all cache groups."""
    requests = books["requests"].values()
    return sum(sum(request["blocks"]) for request in requests if request["metok"])


class BooksOnScrape:
    """Asks for the books before `/metrics` is answered. A scrape never fails because of it."""

    def __init__(self, app: ASGIApp, books: EngineBooks) -> None:
        self.app = app
        self.books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_scrape(scope):
            try:
                await self.books.read(SCRAPE_WAIT_S)
            except Exception:
                logger.debug("The evictor's books could not be read.", exc_info=True)
        await self.app(scope, receive, send)


def is_scrape(scope: Scope) -> bool:
    """Whether somebody wants the metrics."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    return route_path(scope) in METRICS_PATHS


@router.get("/metok/books")
async def metok_books(raw_request: Request) -> Response:
    """Blocks and tokens by request, and the pool, engine by engine. Request ids, no content.

    404 where no stage evicts or prunes, 503 while the engine is busy; behind the API key.
    """
    state = raw_request.app.state
    books: EngineBooks | None = state.metok_books
    if books is None:
        return error_response(404, NO_BOOKS)
    engines = await books.read(DEBUG_WAIT_S)
    if engines is None:
        return error_response(503, BUSY)
    return JSONResponse({"engines": engines})
