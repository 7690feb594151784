from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.config import METokConfig
from metok_vllm.errors import (
    ConfigError,
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
    MetokError,
)
from metok_vllm.server.api import endpoint
from metok_vllm.server.middleware.lifecycle import Lifecycle, Phase
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits


class Body(BaseModel):
    """A request body."""

    text: str
    numbers: list[int] = []


def app_with(**state: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(endpoint.router)
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


def test_vllm_accepts_it_as_a_plugin() -> None:
    assert isinstance(endpoint.MetokEndpoint(), EndpointPlugin)


class TestReady:
    def test_serving(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(), engine_client=engine())
        assert call(app, "GET", "/health/ready").status_code == 200

    def test_loading(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(serving=False), engine_client=engine())
        response = call(app, "GET", "/health/ready")
        assert response.status_code == 503
        assert "loading" in response.json()["error"]["message"]

    def test_draining(self) -> None:
        cycle = lifecycle()
        cycle.drain(0)
        app = app_with(metok_lifecycle=cycle, engine_client=engine())
        response = call(app, "GET", "/health/ready")
        assert response.status_code == 503
        assert "retry-after" in response.headers

    def test_a_dead_engine(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(), engine_client=engine(dead=True))
        assert call(app, "GET", "/health/ready").status_code == 503


class TestErrors:
    @pytest.fixture
    def app(self) -> FastAPI:
        app = app_with(metok_lifecycle=lifecycle())

        @app.post("/echo")
        async def echo(body: Body) -> str:
            return body.text

        return app

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ConfigError("bad", "metok.num_events"), 400),
            (MediaError("bad"), 422),
            (MediaTooLargeError("bad"), 413),
            (MediaForbiddenError("bad"), 400),
            (MediaDeadlineError("bad"), 504),
        ],
    )
    def test_our_errors_have_their_status(
        self, app: FastAPI, error: MetokError, status: int
    ) -> None:
        @app.get("/fail")
        async def fail() -> None:
            raise error

        response = call(app, "GET", "/fail")
        assert response.status_code == status
        content = response.json()["error"]
        assert (content["message"], content["code"]) == ("bad", status)
        assert content["param"] == getattr(error, "field", None)

    def test_a_dead_engine_is_named_and_ends_the_server(self, app: FastAPI) -> None:
        app.state.args = SimpleNamespace(log_error_stack=False)
        app.state.engine_client = SimpleNamespace(errored=True, is_running=False)
        app.state.server = SimpleNamespace(should_exit=False)

        @app.get("/fail")
        async def fail() -> None:
            raise EngineDeadError

        response = call(app, "GET", "/fail")
        assert response.status_code == 503
        assert "engine has stopped" in response.json()["error"]["message"]
        assert app.state.server.should_exit

    @pytest.mark.parametrize(
        ("content", "param"),
        [
            (b'{"text": {"secret": "payload"}}', "text"),
            (b'{"text": "a", "numbers": ["payload"]}', "numbers.0"),
            (b'{"payload": 1}', "text"),
            (b'"payload"', None),
            (b'{"text": "payload', None),
            (b"", None),
            (b"\xff\xfe payload", None),
        ],
    )
    def test_a_malformed_body_is_400_and_not_repeated(
        self, app: FastAPI, content: bytes, param: str | None
    ) -> None:
        headers = {"content-type": "application/json"}
        response = call(app, "POST", "/echo", content=content, headers=headers)
        assert response.status_code == 400
        error = response.json()["error"]
        assert len(error["message"]) > 10
        assert "payload" not in response.text
        if param is not None:
            assert error["param"] == param

    def test_many_errors_are_cut_short(self, app: FastAPI) -> None:
        response = call(app, "POST", "/echo", json={"text": "a", "numbers": ["x"] * 500})
        assert len(response.text) < 1000
        assert "495 more" in response.json()["error"]["message"]

    @pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("DELETE", "/echo")])
    def test_unknown_paths_and_methods(self, app: FastAPI, method: str, path: str) -> None:
        response = call(app, method, path)
        assert response.status_code in (404, 405)
        assert response.json()["error"]["message"]


def init(hf: dict[str, Any], additional_config: Any) -> Any:
    plugin = endpoint.MetokEndpoint()
    plugin.lifecycle = Lifecycle()
    plugin._app = app = FastAPI()
    model = SimpleNamespace(hf_config=SimpleNamespace(**hf), architecture="Qwen2ForCausalLM")
    config = SimpleNamespace(additional_config=additional_config, shutdown_timeout=1)
    client = SimpleNamespace(model_config=model, vllm_config=config, shutdown=None, errored=False)
    asyncio.run(plugin.init_state(client, app.state, None))
    return app.state


@pytest.mark.parametrize("asked", [{}, {"enabled": False}, {"preset": "max"}])
def test_a_model_that_metok_does_not_support_is_not_served(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        init({}, {"metok": asked})
    assert str(caught.value) == (
        "METok does not support Qwen2ForCausalLM; supported: LlavaOnevisionForConditionalGeneration"
    )


def test_unless_nobody_asked_for_metok() -> None:
    assert init({}, {"other": 1}).metok_config is None
    assert init({}, {}).metok_lifecycle.phase is Phase.SERVING


def test_the_settings_of_a_supported_model_are_known() -> None:
    settings = METokConfig(num_events=3).to_dict()
    assert init({"metok": settings}, {"metok": settings}).metok_config.num_events == 3


def test_the_version_names_both_and_hides_paths() -> None:
    config = METokConfig(alignment_model="/some/where")
    response = call(app_with(metok_lifecycle=lifecycle(), metok_config=config), "GET", "/version")
    content = response.json()
    assert set(content) == {"version", "metok", "metok_config"}
    assert content["metok_config"]["num_events"] == config.num_events
    assert "/some/where" not in response.text


def test_vllm_s_stack_being_built_already_is_no_obstacle() -> None:
    app = FastAPI()
    app.middleware_stack = app.build_middleware_stack()
    endpoint.install(app, lifecycle(), ServerSettings(max_body_bytes=5), MediaLimits())
    response = call(app, "POST", "/v1/chat/completions", json={"a": "too long"})
    assert response.status_code == 413
    assert json.loads(response.text)["error"]["message"]


@pytest.mark.parametrize("root", ["", "/", "/v", "/v/"])
def test_a_root_path_hides_nothing(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metok_vllm.server.api.connection.register", lambda settings: None)
    app = FastAPI(root_path=root)
    endpoint.MetokEndpoint().attach_router(app)
    app.state.metok_config = None
    for prefix in ("", root.rstrip("/")):
        for path in ("/", "/version"):
            assert call(app, "GET", prefix + path).status_code == 200
