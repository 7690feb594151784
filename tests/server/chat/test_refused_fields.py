"""Fields of chat completions are refused on every other route."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import starlette.requests
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict

from metok_vllm.config import METokConfig
from metok_vllm.server.api import endpoint
from metok_vllm.server.chat.aliases import ModelAliases
from metok_vllm.server.chat.request_fields import refuse_chat_fields
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import REQUESTER, Requester, current
from tests.server.api.apps import call, lifecycle


class Strict(BaseModel):
    """As vLLM's Anthropic schemas: unknown fields leave no trace."""

    model_config = ConfigDict(extra="ignore")
    text: str


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.post("/v1/messages")
    async def messages(body: Strict) -> str:
        return body.text

    @app.post("/invocations")
    async def invocations(request: Request) -> Any:
        return await request.json()

    @app.post("/bytes")
    async def raw(request: Request) -> int:
        return len(await request.body())

    aliases = ModelAliases.of(["m"], METokConfig())
    endpoint.install(app, lifecycle(), ServerSettings(), MediaLimits(), aliases=aliases)
    return app


@pytest.mark.parametrize("path", ["/v1/messages", "/invocations", "/bytes"])
def test_other_routes_refuse_a_model_name_with_a_preset(app: FastAPI, path: str) -> None:
    response = call(app, "POST", path, json={"text": "a", "model": "m:max"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "model"
    assert error["message"].endswith(f"ask {path} for m")
    for model in ("m", "m:best", 5, None):
        assert call(app, "POST", "/invocations", json={"model": model}).status_code == 200


def test_chat_completions_take_a_model_name_with_a_preset(app: FastAPI) -> None:
    body = {"messages": [], "model": "m:max"}
    for path in ("/v1/chat/completions", "/invocations"):
        assert call(app, "POST", path, json=body).json() == body


@pytest.mark.parametrize("value", [{"junk": 1}, {"enabled": False}, {}, "on", 0])
@pytest.mark.parametrize("path", ["/v1/messages", "/invocations", "/bytes"])
def test_other_routes_refuse_the_field(app: FastAPI, path: str, value: Any) -> None:
    response = call(app, "POST", path, json={"text": "a", "metok": value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "metok"
    assert "/v1/chat/completions only" in error["message"]
    assert path in error["message"]


@pytest.mark.parametrize("more", [{}, {"metok": None}, {"other": {"metok": 1}}])
def test_without_it_nothing_changes(app: FastAPI, more: dict[str, Any]) -> None:
    assert call(app, "POST", "/v1/messages", json={"text": "a", **more}).json() == "a"


def test_chat_completions_take_the_field(app: FastAPI) -> None:
    body = {"messages": [], "metok": {"enabled": False}}
    for path in ("/v1/chat/completions", "/invocations"):
        assert call(app, "POST", path, json=body).json() == body


def test_a_body_is_parsed_once(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def loads(content: bytes) -> Any:
        parsed.append(len(content))
        return json.loads(content)

    # The module of starlette gets a json of its own, so that only its use is counted.
    monkeypatch.setattr(
        starlette.requests, "json", type("Json", (), {"loads": staticmethod(loads)})
    )
    assert call(app, "POST", "/v1/messages", json={"text": "a"}).json() == "a"
    assert len(parsed) == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"text": ', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"text": "a", "metok": 1}', "application/vnd.api+json; charset=utf-8", 400),
    ],
)
def test_malformed_bodies_are_400(app: FastAPI, content: bytes, kind: str, status: int) -> None:
    headers = {"content-type": kind}
    response: httpx.Response = call(app, "POST", "/v1/messages", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_other_bodies_are_not_read(app: FastAPI) -> None:
    headers = {"content-type": "application/octet-stream"}
    body = b'{"metok": 1}'
    assert call(app, "POST", "/bytes", content=body, headers=headers).json() == len(body)


NAMED = {"type": "video_url", "video_url": {"url": "data:,"}, "uuid": "mine"}


@pytest.mark.parametrize(
    "part",
    [
        NAMED,
        {"video_url": None, "uuid": "mine"},
        {"type": "image_url", "url": "http://a.example", "uuid": 5},
        {"image_embeds": None, "uuid": "mine"},
    ],
)
def test_names_of_media_are_refused_elsewhere(app: FastAPI, part: dict[str, Any]) -> None:
    body = {"text": "a", "messages": [[{"role": "user", "content": [{"type": "text"}, part]}]]}
    response = call(app, "POST", "/v1/messages", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "uuid"


def test_a_tool_may_have_a_parameter_of_that_name(app: FastAPI) -> None:
    tool = {"parameters": {"properties": {"uuid": {"type": "string"}}}}
    body = {"text": "a", "tools": [tool], "user": {"uuid": "b"}}
    assert call(app, "POST", "/v1/messages", json=body).json() == "a"


def test_features_of_another_renderer_are_refused() -> None:
    app = FastAPI()

    @app.post("/inference/v1/generate")
    async def generate(body: dict[str, Any]) -> dict[str, Any]:
        return body

    endpoint.install(app, lifecycle(), ServerSettings(), MediaLimits())
    body: dict[str, Any] = {"token_ids": [1], "features": None}
    assert call(app, "POST", "/inference/v1/generate", json=body).json() == body
    body["features"] = {"mm_hashes": {"video": ["of another"]}}
    assert call(app, "POST", "/inference/v1/generate", json=body).status_code == 400


def test_the_requester_gets_tenant_and_number_of_videos() -> None:
    seen: list[Requester] = []
    app = FastAPI()

    @app.post("/v1/messages")
    async def messages(body: dict[str, Any]) -> str:
        seen.append(current())
        return "read"

    refuse_chat_fields(app)
    part = {key: NAMED[key] for key in ("type", "video_url")}
    body = {"cache_salt": "tenant", "messages": [{"content": [part, part, {"type": "text"}]}]}

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for salt in ("tenant", "other"):
                REQUESTER.set(Requester(tenant="key"))
                await client.post("/v1/messages", json={**body, "cache_salt": salt})

    asyncio.run(ask())
    assert [requester.videos for requester in seen] == [2, 2]
    assert len({"key", *(requester.tenant for requester in seen)}) == 3
