"""A request that cannot be read for a value of a wrong type is a 400; other failures are a 500."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.renderers.online_renderer import OnlineRenderer

from metok_vllm.server.api import endpoint
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.server.api.test_endpoint import call, lifecycle

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.post("/validated")
    async def validated(body: ChatCompletionRequest) -> str:
        return str(body.model)

    @app.post("/by-hand")
    async def by_hand(request: Request) -> str:
        return str(ChatCompletionRequest.model_validate(await request.json()).model)

    @app.post("/rendered")
    async def rendered(body: dict[str, Any]) -> Any:
        renderer = OnlineRenderer.__new__(OnlineRenderer)
        return await renderer.render_responses(ResponsesRequest(input="a"))

    @app.post("/broken")
    async def broken(body: dict[str, Any]) -> Any:
        return body["not there"]

    endpoint.install(app, lifecycle(), ServerSettings(), MediaLimits())
    return app


@pytest.mark.parametrize("path", ["/validated", "/by-hand"])
@pytest.mark.parametrize("value", [" ", 5, ["json"], True])
def test_a_validator_that_fails(app: FastAPI, path: str, value: Any) -> None:
    response = call(app, "POST", path, json={**CHAT, "structured_outputs": value})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_renderer_that_fails(app: FastAPI) -> None:
    """It has no parts here, so the first thing that it looks up is not there."""
    response = call(app, "POST", "/rendered", json={})
    assert response.status_code == 400
    assert "wrong type" in response.json()["error"]["message"]


def test_a_mistake_of_the_server_stays_one(app: FastAPI) -> None:
    assert call(app, "POST", "/broken", json={}).status_code == 500


def test_good_bodies_pass(app: FastAPI) -> None:
    for path in ("/validated", "/by-hand"):
        assert call(app, "POST", path, json=CHAT).json() == "m"
