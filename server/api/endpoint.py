"""The `vllm.endpoint_plugins` entry point: METok's routes, errors and limits on vLLM's server.

vLLM loads it where `VLLM_PLUGINS` names `metok_http`; `metok serve` sees to that.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.resources
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from vllm import envs
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import engine_error_handler
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.version import __version__ as vllm_version

from metok_vllm.config import METokConfig
from metok_vllm.engine.config_hook import ARCHITECTURES
from metok_vllm.engine.staging import is_staged
from metok_vllm.errors import ConfigError, MetokError
from metok_vllm.server.api import books
from metok_vllm.server.api.books import BooksOnScrape, EngineBooks
from metok_vllm.server.api.chat import MetokChatRequest, MetokServingChat
from metok_vllm.server.api.envelope import ENGINE_DEAD, ErrorEnvelope, error_response
from metok_vllm.server.api.field_scope import refuse_elsewhere
from metok_vllm.server.api.lifecycle import LIFECYCLE, Lifecycle, Phase, drain_before
from metok_vllm.server.api.middleware import Admission, BodyLimit, Deadline
from metok_vllm.server.media import connector as media_connector
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits

MAX_REPORTED_ERRORS = 5
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; media-src blob:"
)

router = APIRouter()
router.include_router(books.router)


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses={
        HTTPStatus.OK.value: {"content": {"text/event-stream": {}}},
        HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse},
        HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse},
        HTTPStatus.INTERNAL_SERVER_ERROR.value: {"model": ErrorResponse},
        HTTPStatus.NOT_IMPLEMENTED.value: {"model": ErrorResponse},
    },
)
async def create_metok_chat_completion(request: MetokChatRequest, raw_request: Request) -> Response:
    """vLLM's own route, with METok's request schema."""
    return await create_chat_completion(request, raw_request)  # type: ignore[no-any-return]


@router.get("/health/ready")
async def ready(raw_request: Request) -> Response:
    """200 while requests are taken; 503 while loading or draining, and when the engine is dead."""
    state = raw_request.app.state
    phase: Phase = state.metok_lifecycle.phase
    if phase is not Phase.SERVING:
        return error_response(503, f"The server is {phase.value}.")
    try:
        await state.engine_client.check_health()
    except EngineDeadError:
        return error_response(503, ENGINE_DEAD)
    return JSONResponse({"status": "ready"})


@router.get("/version")
async def version(raw_request: Request) -> Response:
    """vLLM's version, METok's, and what METok does on this server."""
    config: METokConfig | None = raw_request.app.state.metok_config
    content: dict[str, Any] = {"version": vllm_version, "metok": _distribution_version()}
    content["metok_config"] = config.to_dict() if config is not None else None
    if config is not None and config.alignment_model is not None:
        content["metok_config"]["alignment_model"] = "set"
    return JSONResponse(content)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """One page to upload a video, ask, and see the events."""
    html = importlib.resources.files("metok_vllm.server.api").joinpath("page/index.html")
    headers = {"content-security-policy": PAGE_POLICY}
    return HTMLResponse(html.read_text(encoding="utf-8"), headers=headers)


class MetokEndpoint:
    """Wires the above into vLLM's app: first the routes, then, once vLLM is done, the rest."""

    name = "metok_http"
    required_tasks = None

    def __init__(self) -> None:
        self.lifecycle = LIFECYCLE
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Phase A: routes. vLLM lets them replace its own."""
        media_connector.register()
        app.include_router(router)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Phase B: vLLM's own handlers and middleware stand, so ours go around them.

        Raises ConfigError where METok is asked for and the model is none it supports.
        """
        settings, limits = ServerSettings.from_env(), MediaLimits.from_env()
        state.metok_lifecycle = self.lifecycle
        state.metok_config = state.metok_books = None
        state.metok_guard = guard(args)
        if engine_client is not None:
            extra = engine_client.vllm_config.additional_config
            hf_config = engine_client.model_config.hf_config
            if values := getattr(hf_config, "metok", None):
                state.metok_config = METokConfig.from_dict(values)
                if is_staged(state.metok_config):
                    state.metok_books = EngineBooks(engine_client)
            elif isinstance(extra, dict) and "metok" in extra:
                raise ConfigError(
                    f"METok does not support {engine_client.model_config.architecture}; "
                    f"supported: {', '.join(ARCHITECTURES)}"
                )
            stock = getattr(state, "openai_serving_chat", None)
            if stock is not None:
                state.openai_serving_chat = MetokServingChat(stock, limits)
            drain_s = float(engine_client.vllm_config.shutdown_timeout)
            engine_client.shutdown = drain_before(engine_client.shutdown, self.lifecycle, drain_s)
        assert self._app is not None, "attach_router runs first"
        install(self._app, self.lifecycle, settings, limits, state.metok_books)
        await asyncio.to_thread(self.lifecycle.serve)


def guard(args: Any) -> AuthenticationMiddleware | None:
    """vLLM's check of the API key, for a route of ours that vLLM does not guard; None: no key."""
    keys = [key for key in getattr(args, "api_key", None) or [envs.VLLM_API_KEY] if key]
    return AuthenticationMiddleware(None, keys) if keys else None


def install(
    app: FastAPI,
    lifecycle: Lifecycle,
    settings: ServerSettings,
    limits: MediaLimits,
    books: EngineBooks | None = None,
) -> None:
    """Put METok's error handlers and middleware on `app`. The last one added is the outermost."""
    # vLLM's SageMaker support has built the stack already; no request has been through it yet.
    app.middleware_stack = None
    refuse_elsewhere(app)
    app.add_exception_handler(MetokError, metok_error_handler)
    app.add_exception_handler(RequestValidationError, validation_error_handler)
    app.add_exception_handler(EngineDeadError, engine_dead_handler)
    if books is not None:
        app.add_middleware(BooksOnScrape, books=books)
    app.add_middleware(Deadline, seconds=settings.request_timeout_s)
    app.add_middleware(Admission, lifecycle=lifecycle, max_inflight=settings.max_inflight)
    app.add_middleware(BodyLimit, limit=settings.body_limit(limits))
    app.add_middleware(ErrorEnvelope)


async def metok_error_handler(_request: Request, error: Exception) -> Response:
    """A MetokError anywhere below a route becomes the status it stands for."""
    status = error.status if isinstance(error, MetokError) else 500
    return error_response(status, str(error), getattr(error, "field", None))


async def engine_dead_handler(request: Request, error: Exception) -> Response:
    """vLLM's handler, which ends the server, with words for the client and a status to retry on."""
    await engine_error_handler(request, error)
    return error_response(503, ENGINE_DEAD)


async def validation_error_handler(_request: Request, error: Exception) -> Response:
    """Malformed JSON and wrong types: what is wrong and where, without repeating the payload."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    parts: list[str] = []
    param: str | None = None
    for detail in details:
        if not isinstance(detail, dict):
            parts.append(str(detail))
            continue
        where = clean_loc_for_param(tuple(detail.get("loc", ()))).removeprefix("body.")
        context = detail.get("ctx", {}).get("error")
        if detail.get("type") == "json_invalid":
            text, where = f"the body is not valid JSON ({context})", ""
        else:
            text = str(detail.get("msg", "is not valid")).removeprefix("Value error, ")
        param = param or getattr(context, "parameter", None) or where or None
        line = f"{where}: {text}" if where not in ("", "body") else text
        if line not in parts:
            parts.append(line)
    if len(parts) > MAX_REPORTED_ERRORS:
        parts[MAX_REPORTED_ERRORS:] = [f"and {len(parts) - MAX_REPORTED_ERRORS} more"]
    return error_response(400, "; ".join(parts), param)


def _distribution_version() -> str:
    return importlib.metadata.version("metok-vllm")
