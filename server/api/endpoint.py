"""The `vllm.endpoint_plugins` entry point: METok's routes, errors and limits on vLLM's server.

vLLM loads it if `VLLM_PLUGINS` names `metok_http`, which `metok serve` sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from vllm import envs

from metok_vllm.config import METokConfig
from metok_vllm.engine.config_hook import ARCHITECTURES
from metok_vllm.engine.staging import is_staged
from metok_vllm.errors import ConfigError
from metok_vllm.models import processor_cache
from metok_vllm.server.api import connection, pages
from metok_vllm.server.api.error_handlers import add_handlers
from metok_vllm.server.api.routes import router
from metok_vllm.server.api.sockets import close_socket
from metok_vllm.server.chat.aliases import NO_ALIASES, ModelAliases
from metok_vllm.server.chat.request_fields import refuse_chat_fields
from metok_vllm.server.chat.serving import MetokServingChat
from metok_vllm.server.engine_client import limit_clients
from metok_vllm.server.media import connector as media_connector
from metok_vllm.server.middleware.evictor_state import EvictorStates
from metok_vllm.server.middleware.lifecycle import (
    LIFECYCLE,
    Lifecycle,
    drain_before,
    stop_decoding,
    watch_engine,
)
from metok_vllm.server.middleware.stack import add_middleware
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits


class MetokEndpoint:
    """Adds METok to vLLM's app: first the routes; once vLLM has set up its state, the rest."""

    name = "metok_http"
    required_tasks = None

    def __init__(self) -> None:
        self.lifecycle = LIFECYCLE
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, some of which replace vLLM's."""
        media_connector.register()
        # uvicorn reads its connection class when it starts to serve the app.
        connection.register(ServerSettings.from_env())
        # The router appends a slash to the root path, so `--root-path /` would hide the page.
        app.root_path = (app.root_path or "").rstrip("/")
        app.include_router(router)
        pages.attach(app)
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Replace vLLM's chat handler, add error handlers and middleware, and start to serve.

        Raises ConfigError if METok is on for a model that it does not support.
        """
        assert self._app is not None, "attach_router runs first"
        settings, limits = ServerSettings.from_env(), MediaLimits.from_env()
        state.metok_lifecycle = self.lifecycle
        state.metok_config = state.metok_evictors = None
        state.metok_aliases = NO_ALIASES
        if engine_client is not None:
            state.metok_config = served_config(engine_client)
            if state.metok_config is not None and is_staged(state.metok_config):
                state.metok_evictors = EvictorStates(engine_client)
            stock = getattr(state, "openai_serving_chat", None)
            if stock is not None:
                processor_cache.follow(engine_client)
                limit_clients(engine_client)
                state.metok_aliases = served_aliases(stock, settings, state.metok_config)
                state.openai_serving_chat = MetokServingChat(
                    stock, limits, settings.image_runs_as_video, state.metok_aliases
                )
            drain_s = float(engine_client.vllm_config.shutdown_timeout)
            engine_client.shutdown = drain_before(
                engine_client.shutdown, self.lifecycle, drain_s, stop_decoding
            )
            loop = asyncio.get_running_loop()
            self.lifecycle.after_serving = partial(close_socket, state, loop)
            state.metok_watch = asyncio.ensure_future(watch_engine(engine_client, stop_decoding))
        install(
            self._app,
            self.lifecycle,
            settings,
            limits,
            keys=api_keys(args),
            evictors=state.metok_evictors,
            aliases=state.metok_aliases,
        )
        await asyncio.to_thread(self.lifecycle.serve)


def served_config(engine_client: Any) -> METokConfig | None:
    """METok's settings of the loaded model, None without METok.

    Raises ConfigError if METok is on for a model that it does not support.
    """
    if settings := getattr(engine_client.model_config.hf_config, "metok", None):
        return METokConfig.from_dict(settings)
    additional = engine_client.vllm_config.additional_config
    if isinstance(additional, dict) and "metok" in additional:
        raise ConfigError(
            f"METok does not support {engine_client.model_config.architecture}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return None


def served_aliases(chat: Any, settings: ServerSettings, config: METokConfig | None) -> ModelAliases:
    """Aliases of the names that vLLM's chat handler serves; none where they are switched off."""
    if not settings.aliases:
        return NO_ALIASES
    return ModelAliases.of((path.name for path in chat.models.base_model_paths), config)


def api_keys(args: Any) -> list[str]:
    """The API keys that vLLM was given; without any, no request needs one."""
    return [key for key in getattr(args, "api_key", None) or [envs.VLLM_API_KEY] if key]


def install(
    app: FastAPI,
    lifecycle: Lifecycle,
    settings: ServerSettings,
    limits: MediaLimits,
    *,
    keys: Sequence[str] = (),
    evictors: EvictorStates | None = None,
    aliases: ModelAliases = NO_ALIASES,
) -> None:
    """Add METok's field checks, error handlers and middleware to `app`."""
    refuse_chat_fields(app, aliases)
    add_handlers(app)
    add_middleware(app, lifecycle, settings, limits, keys=keys, evictors=evictors)
