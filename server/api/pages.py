"""Pages for browsers: the page to ask about a video, and the API's documentation.

Their content security policy forbids other hosts, inline scripts and framing.
"""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.routing import Route

from metok_vllm.server.middleware.envelope import error_response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; connect-src 'self'; "
    "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_POLICY = POLICY.format(styles="")
# Swagger UI sets style attributes.
DOCS_POLICY = POLICY.format(styles=" 'unsafe-inline'")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = frozenset({"page.css", "page.js", "docs.js"})
SWAGGER_FILES = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})
# FastAPI's own pages load scripts from a public CDN.
FASTAPI_PAGES = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc"})
NO_DOCS = "There is no page about the API here. Its description is at /openapi.json."
DOCS_OFF = "The description of the API is switched off on this server."

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> Response:
    """The page to upload a video, ask about it, and see its events."""
    return _file(_ours("index.html"), PAGE_POLICY)


@router.get("/docs")
async def docs(raw_request: Request) -> Response:
    """Swagger UI, from vLLM's package."""
    if raw_request.app.openapi_url is None:
        return error_response(404, DOCS_OFF)
    if not all(_swagger(name).is_file() for name in SWAGGER_FILES):
        return error_response(404, NO_DOCS)
    return _file(_ours("docs.html"), DOCS_POLICY)


@router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """Scripts and styles of the two pages."""
    if name in FILES:
        return _file(_ours(name), PAGE_POLICY)
    if name in SWAGGER_FILES and _swagger(name).is_file():
        return _file(_swagger(name), DOCS_POLICY)
    return error_response(404, "")


def attach(app: FastAPI) -> None:
    """Replace FastAPI's pages with these."""
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, Route) and route.path in FASTAPI_PAGES)
    ]
    app.include_router(router)


def _file(file: Traversable, policy: str) -> Response:
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    media_type = TYPES[f".{file.name.rsplit('.', 1)[1]}"]
    return Response(file.read_bytes(), media_type=media_type, headers=headers)


def _ours(name: str) -> Traversable:
    return importlib.resources.files("metok_vllm.server.api").joinpath("page", name)


def _swagger(name: str) -> Traversable:
    folder = importlib.resources.files("vllm.entrypoints.serve.instrumentator")
    return folder.joinpath("static", name)
