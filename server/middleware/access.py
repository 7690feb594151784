"""API keys and paths: which requests need a key, which generate, and whose they are.

Paths are compared as the router compares them, so a path that is spelled differently here is also
a different path to the router.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm.server.middleware.envelope import send_error

# POST routes of vLLM that control the engine. They must work on a full or draining server, and
# some take long. Every other POST counts as work, so that new routes of vLLM are limited too.
CONTROL_PATHS = frozenset(
    {
        "/abort_requests",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/finish_weight_update",
        "/inference/v1/abort_requests",
        "/init_weight_transfer_engine",
        "/is_scaling_elastic_ep",
        "/pause",
        "/ping",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
    }
)
CANCEL = re.compile(r"/v1/responses/[^/]+/cancel")
PAGE_PATHS = frozenset({"/", "/page/page.css", "/page/page.js"})
HEALTH_PATHS = frozenset({"/health", "/health/ready", "/ping"})
METRICS_PATHS = frozenset({"/metrics", "/metrics/"})
UPLOADS = "/v1/audio/"
# The scope's key for the tenant of a request: a hash of its API key.
TENANT = "metok.tenant"
TENANT_DIGITS = 32
POLICY_VIOLATION = 1008  # close code of a websocket


class KeyCheck:
    """Refuses requests without one of `keys` with 401, before anything of them is read.

    vLLM's own check covers four path prefixes, which leaves /invocations and /tokenize open. It
    removes the root path as a string, so `--root-path /` opens everything.
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
        """A hash of the request's key if it is valid, else an empty string."""
        scheme, _, key = header(scope, b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            return ""
        presented = _digest(key.encode("latin-1"))
        # Every digest is compared, so the time does not depend on which one matches.
        matches = [secrets.compare_digest(presented, digest) for digest in self._digests]
        return presented.hex()[:TENANT_DIGITS] if any(matches) else ""


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_error(send, 401)
        return
    await receive()
    await send({"type": "websocket.close", "code": POLICY_VIOLATION})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def client_of(scope: Scope) -> str:
    """The client of a request: its API key's hash, or its address where there are no keys."""
    host, _ = scope.get("client") or ("", 0)
    return str(scope.get(TENANT) or host)


def needs_key(scope: Scope, metrics_without_key: bool) -> bool:
    """Whether a request needs the API key of a server that has one; health and the page do not."""
    if scope["type"] != "http":
        return True
    path, method = route_path(scope), scope["method"]
    if method == "OPTIONS" and is_preflight(scope):
        return False
    if method == "POST":
        return path != "/ping"
    if method not in ("GET", "HEAD"):
        return True
    return not (
        path in HEALTH_PATHS
        or path in PAGE_PATHS
        or (metrics_without_key and path in METRICS_PATHS)
    )


def is_work(scope: Scope) -> bool:
    """Whether a request can make the server read media or generate."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = route_path(scope).rstrip("/")
    return path not in CONTROL_PATHS and CANCEL.fullmatch(path) is None


def is_preflight(scope: Scope) -> bool:
    """Whether it is a browser's CORS preflight, which is answered before any route."""
    return bool(header(scope, b"origin") and header(scope, b"access-control-request-method"))


def is_upload(scope: Scope) -> bool:
    """Whether the body is a form with a file, not JSON."""
    form = header(scope, b"content-type").lower().startswith("multipart/form-data")
    return form and route_path(scope).startswith(UPLOADS)


def route_path(scope: Scope) -> str:
    """The path that the router matches: without the root path, otherwise unchanged."""
    return str(get_route_path(scope))


def header(scope: Scope, name: bytes) -> str:
    """The first header of that name, or an empty string."""
    for key, value in scope["headers"]:
        if key.lower() == name:
            return str(value.decode("latin-1"))
    return ""
