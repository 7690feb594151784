"""Leaving the socket: who has been accepted is answered, who comes later is refused at once.

vLLM closes the socket only after it has cleaned up, which blocks the event loop: connections that
the system takes meanwhile would be reset.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn

logger = logging.getLogger("vllm.metok")

# For the request of a connection that has just been accepted, and for its answer.
LAST_REQUEST_S = 1.0
LOOK_AGAIN_S = 0.02


def leave_socket(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close the socket and the connections of `state.server`. Blocks its thread, not the loop's."""
    server: uvicorn.Server | None = getattr(state, "server", None)
    if server is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(_leave(server), loop).result(2 * LAST_REQUEST_S)
    except TimeoutError:
        logger.warning("The event loop was too busy to close the socket in good order.")


async def _leave(server: uvicorn.Server) -> None:
    for listener in server.servers:
        listener.close()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LAST_REQUEST_S
    connections: Any = server.server_state.connections
    while connections and loop.time() < deadline:
        await asyncio.sleep(LOOK_AGAIN_S)
    for connection in list(connections):
        connection.shutdown()
