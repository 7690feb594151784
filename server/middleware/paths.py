"""Which requests are work, which steer the server, and which need no key.

Paths are compared as the router compares them, so another spelling is another path to both.
"""

from __future__ import annotations

import re

from starlette._utils import get_route_path
from starlette.types import Scope

# POST routes of vLLM that neither read media nor generate: they steer what runs, so they must work
# on a full or draining server, and some may take long. Everything else that is posted is work, so
# that a route vLLM adds is limited from the start.
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


def route_path(scope: Scope) -> str:
    """The path that the router will look for: without the root path, otherwise as it came."""
    return str(get_route_path(scope))


def is_work(scope: Scope) -> bool:
    """Whether this request can make the server read media or generate."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = route_path(scope).rstrip("/")
    return path not in CONTROL_PATHS and CANCEL.fullmatch(path) is None


def needs_key(scope: Scope, metrics_without_key: bool) -> bool:
    """Whether this request needs the API key where there is one: all but a few readings do."""
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


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what it may do; CORS answers that before any route."""
    return bool(header(scope, b"origin") and header(scope, b"access-control-request-method"))


def is_upload(scope: Scope) -> bool:
    """Whether the body is a form with a file, not JSON."""
    form = header(scope, b"content-type").lower().startswith("multipart/form-data")
    return form and route_path(scope).startswith(UPLOADS)


def header(scope: Scope, name: bytes) -> str:
    """The first header of that name, or nothing."""
    for key, value in scope["headers"]:
        if key.lower() == name:
            return str(value.decode("latin-1"))
    return ""
