"""API keys and paths: which requests need a key, and which are work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import vllm
from starlette.types import Message, Receive, Scope, Send

from metok_vllm.server.middleware import access
from metok_vllm.server.middleware.access import TENANT, KeyCheck, is_work
from tests.server.http_servers import Client, http_scope

KEYS = ["first secret", "zweites Geheimnis ä"]


def ask(
    path: str,
    method: str = "GET",
    key: str | None = None,
    *,
    metrics: bool = True,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **extra: Any,
) -> tuple[bool, Scope, Client]:
    """Whether the app was reached, with which scope, and the client."""
    reached: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope)

    if key is not None:
        headers = (*headers, (b"authorization", f"Bearer {key}".encode()))
    client = Client(b"body")
    scope = {**http_scope(path, method), "headers": list(headers), **extra}
    asyncio.run(KeyCheck(app, KEYS, metrics)(scope, client.receive, client.send))
    return bool(reached), reached[0] if reached else {}, client


GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/invocations"),
    ("POST", "/tokenize"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/"),
    ("POST", "/health"),
    ("PUT", "/page/page.js"),
    ("OPTIONS", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/metok/books"),
    ("GET", "/metrics/../v1/models"),
    ("GET", "/health/../v1/models"),
    ("GET", "/a/route/of/tomorrow"),
]


@pytest.mark.parametrize("root", ["", "/", "/v", "/health"])
@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_everything_needs_a_key(method: str, path: str, root: str) -> None:
    for key in (None, "", "wrong", KEYS[0][:-1], KEYS[0] + "x"):
        reached, _, client = ask(path, method, key, root_path=root)
        assert not reached
        assert client.status == 401
        assert len(client._messages) == 1, "the body was read"
    for key in KEYS:
        assert ask(path, method, key, root_path=root)[0]


@pytest.mark.parametrize("path", ["//health", "/health/", "/health/.", "/%68ealth", "/PING"])
def test_another_spelling_is_another_path(path: str) -> None:
    assert not ask(path)[0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/page/page.js"),
        ("GET", "/page/page.css"),
        ("GET", "/health"),
        ("GET", "/health/ready"),
        ("GET", "/ping"),
        ("POST", "/ping"),
    ],
)
def test_health_and_the_page_need_no_key(method: str, path: str) -> None:
    assert ask(path, method)[0]
    assert ask("/prefix" + path, method, root_path="/prefix")[0]


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_metrics_by_choice(path: str) -> None:
    assert ask(path)[0]
    assert not ask(path, metrics=False)[0]
    assert ask(path, key=KEYS[0], metrics=False)[0]


def test_a_cors_preflight_needs_no_key() -> None:
    preflight = (
        (b"origin", b"https://example.com"),
        (b"access-control-request-method", b"POST"),
    )
    assert ask("/v1/chat/completions", "OPTIONS", headers=preflight)[0]
    assert not ask("/v1/chat/completions", "POST", headers=preflight)[0]


@pytest.mark.parametrize("value", [b"first secret", b"Basic first secret", b"Bearer  first secret"])
def test_other_authorization_forms_are_refused(value: bytes) -> None:
    assert not ask("/v1/models", headers=((b"authorization", value),))[0]


def test_the_scope_gets_the_tenant_of_a_valid_key() -> None:
    tenants = {ask("/v1/models", key=key)[1][TENANT] for key in KEYS}
    assert len(tenants) == len(KEYS)
    assert not any("secret" in tenant for tenant in tenants)
    # Open paths take whatever comes, but only a right key makes a tenant.
    assert TENANT not in ask("/health", key="wrong")[1]


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_websocket_is_closed_before_it_opens(key: str | None) -> None:
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("called")

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
    asyncio.run(KeyCheck(app, KEYS, True)(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/messages/count_tokens",
        "/cohere/v2/chat",
        "/tokenize",
        "/invocations",
        "/a/route/of/tomorrow",
    ],
)
def test_everything_that_is_posted_is_work(path: str) -> None:
    assert is_work(http_scope(path))
    assert is_work(http_scope("/prefix" + path, root_path="/prefix"))
    assert not is_work(http_scope(path, method="OPTIONS"))
    assert not is_work(http_scope(path, method="GET"))


@pytest.mark.parametrize(
    "path", ["/ping", "/v1/responses/resp_1/cancel", "/inference/v1/abort_requests", "/wake_up/"]
)
def test_control_routes_are_not_work(path: str) -> None:
    assert not is_work(http_scope(path))
    assert not is_work(http_scope("/prefix" + path, root_path="/prefix"))


@pytest.mark.parametrize("root", ["/", "/v", "/v1/chat"])
def test_only_a_whole_root_path_is_removed(root: str) -> None:
    assert access.route_path(http_scope("/v1/completions", root_path=root)) == "/v1/completions"


def test_the_control_routes_are_routes_of_vllm() -> None:
    """A control path that vLLM does not have would exempt a path from the limits."""
    package = Path(vllm.__file__).parent / "entrypoints"
    source = "\n".join(path.read_text() for path in package.rglob("api_router.py"))
    assert {path for path in access.CONTROL_PATHS if f'"{path}"' not in source} == set()
    assert '"/v1/responses/{response_id}/cancel"' in source
