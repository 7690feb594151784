"""Leaving the socket: who has been accepted is answered, who comes later is refused at once.

vLLM closes the socket only after it has cleaned up, which blocks the event loop: connections that
the system takes meanwhile would be reset.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

import uvicorn

logger = logging.getLogger("vllm.metok")

# For the request of a connection that has just been accepted, and for its answer.
LAST_REQUEST_S = 1.0
LOOK_AGAIN_S = 0.02
MOST_WAITING = 4096


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
    loop = asyncio.get_running_loop()
    for connected in _close_listeners(server):
        with suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: server.config.http_protocol_class(  # type: ignore[call-arg]
                    config=server.config,
                    server_state=server.server_state,
                    app_state=server.lifespan.state,
                    _loop=loop,
                ),
                connected,
                ssl=server.config.ssl,
            )
    deadline = loop.time() + LAST_REQUEST_S
    connections: Any = server.server_state.connections
    while connections and loop.time() < deadline:
        await asyncio.sleep(LOOK_AGAIN_S)
    for connection in list(connections):
        connection.shutdown()


def _close_listeners(server: uvicorn.Server) -> list[socket.socket]:
    """Stop listening; the connections that waited to be accepted, which would be reset."""
    waiting: list[socket.socket] = []
    for listener in server.servers:
        twins = [socket.fromfd(s.fileno(), s.family, s.type) for s in listener.sockets]
        listener.close()
        for twin in twins:
            with twin, suppress(OSError):
                twin.setblocking(False)
                while len(waiting) < MOST_WAITING:
                    waiting.append(twin.accept()[0])
    for connected in waiting:
        connected.setblocking(False)
    return waiting
