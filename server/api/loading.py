"""Answers on the server's socket while the engine loads, so that probes get a 503, not a timeout.

It runs in a thread, because vLLM blocks the main one while it loads, and listens on a duplicate of
the socket: connections that arrive during the hand-over wait in the shared queue.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from argparse import Namespace
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from metok_vllm.server.api.connection import connection_class
from metok_vllm.server.middleware.envelope import send_error
from metok_vllm.server.settings import ServerSettings

RETRY_AFTER_S = 5
STOP_S = 5
LAST_REQUEST_S = 1.0
BACKLOG = 2048


class LoadingResponder:
    """503 with Retry-After for every request, from `start` to `stop`."""

    def __init__(self, sock: socket.socket, **uvicorn_options: Any) -> None:
        # vLLM binds the socket but leaves listening to the HTTP server.
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
        self._server = _GentleServer(config)
        self._thread = threading.Thread(target=self._run, name="metok-loading", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what has been accepted, then leave the socket to the server. Idempotent."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(2 * STOP_S)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _GentleServer(uvicorn.Server):
    """Uvicorn would drop a connection whose request has not arrived yet; this waits for it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + LAST_REQUEST_S
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


def tls_options(args: Namespace) -> dict[str, Any]:
    """The server's own TLS settings for the responder."""
    return {
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
    }


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    headers = {"retry-after": str(RETRY_AFTER_S), "connection": "close"}
    await send_error(send, 503, "The server is loading the model.", headers=headers)
