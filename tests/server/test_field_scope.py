from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import starlette.requests
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict

from metok_vllm.server.api import endpoint
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.server.test_endpoint import call, lifecycle


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

    endpoint.install(app, lifecycle(), ServerSettings(), MediaLimits())
    return app


@pytest.mark.parametrize("value", [{"junk": 1}, {"enabled": False}, {}, "on", 0])
@pytest.mark.parametrize("path", ["/v1/messages", "/invocations", "/bytes"])
def test_elsewhere_the_field_is_refused(app: FastAPI, path: str, value: Any) -> None:
    response = call(app, "POST", path, json={"text": "a", "metok": value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "metok"
    assert "/v1/chat/completions only" in error["message"]
    assert path in error["message"]


@pytest.mark.parametrize("more", [{}, {"metok": None}, {"other": {"metok": 1}}])
def test_without_it_nothing_changes(app: FastAPI, more: dict[str, Any]) -> None:
    assert call(app, "POST", "/v1/messages", json={"text": "a", **more}).json() == "a"


def test_at_home_it_is_taken(app: FastAPI) -> None:
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
def test_what_is_malformed_is_answered_as_always(
    app: FastAPI, content: bytes, kind: str, status: int
) -> None:
    headers = {"content-type": kind}
    response: httpx.Response = call(app, "POST", "/v1/messages", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_other_bodies_are_not_read(app: FastAPI) -> None:
    headers = {"content-type": "application/octet-stream"}
    body = b'{"metok": 1}'
    assert call(app, "POST", "/bytes", content=body, headers=headers).json() == len(body)
