"""The `metok` field is refused where nothing would read it, instead of being ignored.

METok works on the videos of every endpoint, with the server's settings; only chat completions take
settings of a request. vLLM's other request schemas let unknown fields pass without a word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute, request_response

from metok_vllm.errors import ConfigError

FIELD = "metok"
HOME = "/v1/chat/completions"
# SageMaker's one path for everything: a body with messages goes to chat completions.
INVOCATIONS = "/invocations"

Handler = Callable[[Request], Awaitable[Response]]


def refuse_elsewhere(app: FastAPI) -> None:
    """Make every other POST route of `app` answer 400 to a body that has the field."""
    for route in app.routes:
        if isinstance(route, APIRoute) and "POST" in route.methods and route.path != HOME:
            route.app = request_response(_checked(route.get_route_handler(), route.path))


def _checked(handler: Handler, path: str) -> Handler:
    async def checked(request: Request) -> Response:
        if "json" in request.headers.get("content-type", "").lower():
            _check(await _body(request), path)
        return await handler(request)

    return checked


async def _body(request: Request) -> Any:
    try:
        # The request keeps what it has parsed: the handler does not parse it again.
        return await request.json()
    except Exception:
        # Not JSON, or the client is gone: the handler finds out too, and says so as always.
        return None


def _check(body: Any, path: str) -> None:
    if not isinstance(body, dict) or body.get(FIELD) is None:
        return
    if path == INVOCATIONS and "messages" in body:
        return
    raise ConfigError(
        f"the {FIELD} field works on {HOME} only; requests to {path} are answered with the "
        "server's METok settings",
        FIELD,
    )
