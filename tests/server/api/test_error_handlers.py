"""What failed requests answer and log: 400 for a client's mistakes, 500 for the server's."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm
from fastapi import FastAPI, Request
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.errors import (
    ConfigError,
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
    MetokError,
)
from metok_vllm.server.api import endpoint
from metok_vllm.server.api.error_handlers import LOGGERS, ClientErrorFilter, add_handlers, describe
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.server.api.apps import Body, app_with, call, lifecycle


def wrong(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"loc": ("body", "messages", n), "msg": "is wrong", **more} for n in range(count)]


def test_the_first_few_and_how_many_more() -> None:
    message, param = describe(wrong(500))
    assert message.startswith("messages.0: is wrong; messages.1: is wrong; ")
    assert message.endswith("messages.4: is wrong; and 495 more")
    assert param == "messages.0"


def test_equal_lines_are_said_once() -> None:
    assert describe(wrong(1) * 3) == ("messages.0: is wrong", "messages.0")


def test_a_million_errors_are_no_work() -> None:
    details = wrong(1) * 1_000_000
    started = time.process_time()
    describe(details)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("length", [300, 100_000])
def test_every_line_is_short(length: int) -> None:
    details = [{"loc": ("body", f"{n}" + "a" * length), "msg": "m" * length} for n in range(9)]
    assert len(describe(details)[0]) < 1100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [1] * 5_900}),
        ("/v1/chat/completions", {"messages": [{}] * 2_900}),
        ("/v1/responses", {"input": [1] * 1_900}),
        ("/v1/responses", {"input": [{}] * 900}),
    ],
)
def test_the_worst_accepted_bodies_validate_in_time(path: str, body: dict[str, Any]) -> None:
    app: FastAPI = app_with(metok_lifecycle=lifecycle())
    started = time.process_time()
    response = call(app, "POST", path, json={"model": "m", **body})
    assert response.status_code == 400
    assert len(response.content) < 2000
    # Below a second on an idle core; the test may not fail because others are busy.
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")]
)
@pytest.mark.parametrize("size", [16_000, 4_000_000])
def test_longer_ones_are_not_validated(path: str, field: str, size: int) -> None:
    app = app_with(metok_lifecycle=lifecycle())
    content = b'{"%s": [%s1]}' % (field.encode(), b"1," * (size // 2))
    headers = {"content-type": "application/json"}
    started = time.process_time()
    response = call(app, "POST", path, content=content, headers=headers)
    assert response.status_code == 413
    assert "list items" in response.json()["error"]["message"]
    assert time.process_time() - started < 1


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
    """This renderer has no attributes, so its first lookup fails."""
    response = call(app, "POST", "/rendered", json={})
    assert response.status_code == 400
    assert "wrong type" in response.json()["error"]["message"]


def test_an_error_of_the_server_is_500(app: FastAPI) -> None:
    assert call(app, "POST", "/broken", json={}).status_code == 500


def test_good_bodies_pass(app: FastAPI) -> None:
    for path in ("/validated", "/by-hand"):
        assert call(app, "POST", path, json=CHAT).json() == "m"


def logged(error: Exception) -> logging.LogRecord | None:
    record = logging.LogRecord("vllm.x", logging.ERROR, "", 1, "Error: %s", (error,), None)
    record.exc_info = (type(error), error, None)
    return record if ClientErrorFilter().filter(record) else None


@pytest.mark.parametrize(
    "error", [ConfigError("bad"), MediaForbiddenError("bad"), MediaDeadlineError("bad")]
)
def test_a_client_s_mistake_is_one_line(error: Exception) -> None:
    logging.getLogger("vllm.x").setLevel(logging.INFO)
    record = logged(error)
    assert record is not None
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert record.getMessage() == f"A request was refused: {type(error).__name__}: bad"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("broken"), TypeError("broken")])
def test_the_server_s_own_keeps_its_traceback(error: Exception) -> None:
    record = logged(error)
    assert record is not None
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_logged_error_response_is_one_short_line() -> None:
    logging.getLogger("vllm.x").setLevel(logging.INFO)
    refusal = create_error_response(f"The model `{'a' * 100_000}` does not exist.")
    record = logging.LogRecord("vllm.x", logging.ERROR, "", 1, "Error: %s", (refusal,), None)
    assert ClientErrorFilter().filter(record)
    assert record.levelno == logging.INFO
    assert len(record.getMessage()) < 300


def test_the_loggers_are_vllm_s() -> None:
    add_handlers(FastAPI())
    add_handlers(FastAPI())
    root = Path(vllm.__file__).parents[1]
    for name in LOGGERS:
        source = (root / (name.replace(".", "/") + ".py")).read_text()
        assert "logger.exception(" in source or "logger.error(" in source
        assert re.search(r"^logger = [\w.]+\(__name__\)$", source, re.MULTILINE)
        filters = logging.getLogger(name).filters
        assert sum(isinstance(one, ClientErrorFilter) for one in filters) == 1


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
