from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi import FastAPI

from metok_vllm.server.api import endpoint
from metok_vllm.server.api.error_handlers import describe
from tests.server.api.test_endpoint import app_with, call, lifecycle


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
def test_the_worst_bodies_that_are_let_in(path: str, body: dict[str, Any]) -> None:
    app: FastAPI = app_with(metok_lifecycle=lifecycle())
    assert endpoint.router.routes
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
