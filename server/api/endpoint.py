"""The `vllm.endpoint_plugins` entry point: METok's routes, errors and limits on vLLM's server.

vLLM loads it where `VLLM_PLUGINS` names `metok_http`; `metok serve` sees to that.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from vllm import envs
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.version import __version__ as vllm_version

from metok_vllm.config import METokConfig
from metok_vllm.engine.config_hook import ARCHITECTURES
from metok_vllm.engine.staging import is_staged
from metok_vllm.errors import ConfigError
from metok_vllm.models import processor_cache
from metok_vllm.server.api import connection, pages, responses
from metok_vllm.server.api.body_types import refuse_wrong_types
from metok_vllm.server.api.engine_share import share_places
from metok_vllm.server.api.error_handlers import add_handlers
from metok_vllm.server.api.leaving import leave_socket
from metok_vllm.server.api.log_filter import quiet_client_mistakes
from metok_vllm.server.chat.field_scope import refuse_elsewhere
from metok_vllm.server.chat.serving import MetokChatRequest, MetokServingChat
from metok_vllm.server.media import connector as media_connector
from metok_vllm.server.middleware import evictor_state as books
from metok_vllm.server.middleware.envelope import ENGINE_DEAD, error_response
from metok_vllm.server.middleware.evictor_state import EngineBooks
from metok_vllm.server.middleware.lifecycle import (
    LIFECYCLE,
    Lifecycle,
    Phase,
    drain_before,
    stop_decoding,
    watch_engine,
)
from metok_vllm.server.middleware.stack import add_middleware
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits

router = APIRouter()
router.include_router(books.router)
router.include_router(responses.router)


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
        # Connections are accepted once the app is served: by then uvicorn shall know our class.
        connection.register(ServerSettings.from_env())
        # The router compares with a slash behind it: `--root-path /` would hide the page.
        app.root_path = (app.root_path or "").rstrip("/")
        app.include_router(router)
        pages.attach(app)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Phase B: vLLM's own handlers and middleware stand, so ours go around them.

        Raises ConfigError where METok is asked for and the model is none it supports.
        """
        settings, limits = ServerSettings.from_env(), MediaLimits.from_env()
        state.metok_lifecycle = self.lifecycle
        state.metok_config = state.metok_books = None
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
                processor_cache.follow(engine_client)
                share_places(engine_client)
                state.openai_serving_chat = MetokServingChat(stock, limits)
            drain_s = float(engine_client.vllm_config.shutdown_timeout)
            engine_client.shutdown = drain_before(
                engine_client.shutdown, self.lifecycle, drain_s, stop_decoding
            )
            loop = asyncio.get_running_loop()
            self.lifecycle.after_serving = partial(leave_socket, state, loop)
            state.metok_watch = asyncio.ensure_future(watch_engine(engine_client, stop_decoding))
        assert self._app is not None, "attach_router runs first"
        install(
            self._app,
            self.lifecycle,
            settings,
            limits,
            keys=api_keys(args),
            books=state.metok_books,
        )
        await asyncio.to_thread(self.lifecycle.serve)


def api_keys(args: Any) -> list[str]:
    """The keys that vLLM was given; none: everybody may ask."""
    return [key for key in getattr(args, "api_key", None) or [envs.VLLM_API_KEY] if key]


def install(
    app: FastAPI,
    lifecycle: Lifecycle,
    settings: ServerSettings,
    limits: MediaLimits,
    *,
    keys: Sequence[str] = (),
    books: EngineBooks | None = None,
) -> None:
    """Put METok's checks of bodies, error handlers and middleware on `app`."""
    refuse_wrong_types(app)
    refuse_elsewhere(app)
    add_handlers(app)
    quiet_client_mistakes()
    add_middleware(app, lifecycle, settings, limits, keys=keys, books=books)


def _distribution_version() -> str:
    return importlib.metadata.version("metok-vllm")
