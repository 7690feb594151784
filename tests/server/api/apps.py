"""FastAPI apps with METok's routes and middleware, and calls of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import BaseModel
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.server.api import endpoint
from metok_vllm.server.api.routes import router
from metok_vllm.server.middleware.lifecycle import Lifecycle
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits


class Body(BaseModel):
    """A request body."""

    text: str
    numbers: list[int] = []


def app_with(**state: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    for name, value in state.items():
        setattr(app.state, name, value)
    endpoint.install(app, state["metok_lifecycle"], ServerSettings(), MediaLimits())
    return app


def call(app: FastAPI, method: str, path: str, **kwargs: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(main())


def engine(dead: bool = False) -> Any:
    async def check_health() -> None:
        if dead:
            raise EngineDeadError

    return SimpleNamespace(check_health=check_health)


def lifecycle(serving: bool = True) -> Lifecycle:
    cycle = Lifecycle()
    if serving:
        cycle.serve()
    return cycle
