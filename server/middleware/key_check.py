"""The API key: asked for before anything of a request is read, on every path but a few."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm.server.middleware.envelope import send_error
from metok_vllm.server.middleware.paths import header, needs_key

logger = logging.getLogger("vllm.metok")

# Where later layers find whose request it is.
TENANT = "metok.tenant"
TENANT_DIGITS = 32
POLICY_VIOLATION = 1008


class KeyCheck:
    """Refuses what comes without one of `keys`; with it, the scope names the tenant.

    vLLM's own check looks at four prefixes and takes the root path off as a string, which opens
    /invocations, /tokenize and, with `--root-path /`, everything.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], metrics_without_key: bool) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._metrics_without_key = metrics_without_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        tenant = self._tenant(scope)
        if tenant:
            scope[TENANT] = tenant
        elif needs_key(scope, self._metrics_without_key):
            await _refuse(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        """A hash of the key that was presented, if it is one of ours."""
        scheme, _, key = header(scope, b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            return ""
        presented = _digest(key.encode("latin-1"))
        # Every digest is compared, so that the time tells nothing about which one it was.
        known = [secrets.compare_digest(presented, digest) for digest in self._digests]
        return presented.hex()[:TENANT_DIGITS] if any(known) else ""


def client_of(scope: Scope) -> str:
    """Whoever holds a key is one client; without keys, whoever comes from one address."""
    host, _ = scope.get("client") or ("", 0)
    return str(scope.get(TENANT) or host)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_error(send, 401)
        return
    await receive()
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
