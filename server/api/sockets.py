"""The server's listening socket before and after it serves, so that no connection is reset.

While the engine loads, a thread answers with 503, because vLLM blocks the main thread. At the end,
the socket is closed before vLLM's clean-up blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from argparse import Namespace
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from metok_vllm.server.api.connection import connection_class
from metok_vllm.server.middleware.envelope import send_error
from metok_vllm.server.settings import ServerSettings

logger = logging.getLogger("vllm.metok")

RETRY_AFTER_S = 5
STOP_S = 5
BACKLOG = 2048
# Time for the request of a connection that was accepted just before the end, and for its answer.
LAST_REQUEST_S = 1.0
POLL_S = 0.02
MAX_UNACCEPTED = 4096


class LoadingResponder:
    """Answers every request with 503 and Retry-After, from `start` to `stop`.

    It listens on a duplicate of the server's socket. Connections that arrive during the hand-over
    wait in the queue that both share.
    """

    def __init__(self, sock: socket.socket, **uvicorn_options: Any) -> None:
        # vLLM binds the socket; the HTTP server starts to listen.
        sock.listen(BACKLOG)
        self._socket = sock.dup()
        config = uvicorn.Config(
            _answer,
            lifespan="off",
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=STOP_S,
            http=connection_class(ServerSettings.from_env()),
            **uvicorn_options,
        )
        self._server = _PatientServer(config)
        self._thread = threading.Thread(target=self._run, name="metok-loading", daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer the accepted connections, then stop. Blocks; idempotent."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(2 * STOP_S)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _PatientServer(uvicorn.Server):
    """Waits at shutdown for the first request of each connection; uvicorn closes them at once."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + LAST_REQUEST_S
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        await super().shutdown(sockets)


def tls_options(args: Namespace) -> dict[str, Any]:
    """The server's TLS settings as uvicorn options."""
    names = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs")
    return {name: getattr(args, name) for name in names}


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    headers = {"retry-after": str(RETRY_AFTER_S), "connection": "close"}
    await send_error(send, 503, "The server is loading the model.", headers=headers)


def close_socket(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close the socket and the connections of `state.server`, which runs in `loop`.

    Accepted connections are answered first, later ones are refused. Blocks the calling thread,
    which must not be the loop's.
    """
    server: uvicorn.Server | None = getattr(state, "server", None)
    if server is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result(2 * LAST_REQUEST_S)
    except TimeoutError:
        logger.warning("The event loop was too busy to close the socket in time.")


async def _close(server: uvicorn.Server) -> None:
    loop = asyncio.get_running_loop()
    protocol_class: Any = server.config.http_protocol_class
    for accepted in _close_listeners(server):
        with suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: protocol_class(
                    config=server.config,
                    server_state=server.server_state,
                    app_state=server.lifespan.state,
                    _loop=loop,
                ),
                accepted,
                ssl=server.config.ssl,
            )
    deadline = loop.time() + LAST_REQUEST_S
    connections: Any = server.server_state.connections
    while connections and loop.time() < deadline:
        await asyncio.sleep(POLL_S)
    for connection in list(connections):
        connection.shutdown()


def _close_listeners(server: uvicorn.Server) -> list[socket.socket]:
    """Stop listening, and accept the connections still in the queue, which would be reset."""
    accepted: list[socket.socket] = []
    for listener in server.servers:
        duplicates = [socket.fromfd(s.fileno(), s.family, s.type) for s in listener.sockets]
        listener.close()
        for duplicate in duplicates:
            with duplicate, suppress(OSError):
                duplicate.setblocking(False)
                while len(accepted) < MAX_UNACCEPTED:
                    accepted.append(duplicate.accept()[0])
    for connected in accepted:
        connected.setblocking(False)
    return accepted
