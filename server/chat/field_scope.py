"""Fields that only chat completions read are refused elsewhere, instead of being ignored.

METok works on the videos of every endpoint, with the server's settings; only chat completions take
settings of a request and names of media. vLLM's other request schemas let unknown fields pass
without a word, and take such names for all clients alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute, request_response

from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.content_parts import UUID, named_media, objects
from metok_vllm.video.requester import current

FIELD = "metok"
HOME = "/v1/chat/completions"
# SageMaker's one path for everything: a body with messages goes to chat completions.
INVOCATIONS = "/invocations"
# Media processed elsewhere, under whatever hash the client says: it would stand for others' media.
FEATURES, TOKENS = "features", "/inference/v1/generate"

Handler = Callable[[Request], Awaitable[Response]]


def refuse_elsewhere(app: FastAPI) -> None:
    """Make every other POST route of `app` answer 400 to a body that has such a field."""
    for route in app.routes:
        if isinstance(route, APIRoute) and "POST" in route.methods and route.path != HOME:
            route.app = request_response(_checked(route.get_route_handler(), route.path))


def _checked(handler: Handler, path: str) -> Handler:
    async def checked(request: Request) -> Response:
        if "json" in request.headers.get("content-type", "").lower():
            body = await _body(request)
            if isinstance(body, dict) and not (path == INVOCATIONS and "messages" in body):
                _check(body, path)
                _describe(body)
        return await handler(request)

    return checked


async def _body(request: Request) -> Any:
    try:
        # The request keeps what it has parsed: the handler does not parse it again.
        return await request.json()
    except Exception:
        # Not JSON, or the client is gone: the handler finds out too, and says so as always.
        return None


def _check(body: dict[str, Any], path: str) -> None:
    if body.get(FIELD) is not None:
        raise ConfigError(
            f"the {FIELD} field works on {HOME} only; requests to {path} are answered with the "
            "server's METok settings",
            FIELD,
        )
    if named_media(body):
        raise ConfigError(f"{UUID} works on {HOME} only; send the media itself to {path}", UUID)
    if path == TOKENS and body.get(FEATURES) is not None:
        raise ConfigError(f"this server takes no {FEATURES} of another renderer", FEATURES)


def _describe(body: dict[str, Any]) -> None:
    """Say what the media of the request need, for code that reads them."""
    requester = current()
    salt = body.get("cache_salt")
    requester.add_salt(salt if isinstance(salt, str) else None)
    requester.videos = sum("video_url" in (node.get("type"), *node) for node in objects(body))
