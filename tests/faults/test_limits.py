"""Key, admission limit, deadline and disconnects: afterwards the server is idle and answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import CHAT, MODEL, is_envelope
from tests.faults.servers import (
    KEY,
    chat,
    client,
    requests_running,
    running,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

MAX_INFLIGHT = 2
DEADLINE_S = 30.0  # a busy machine needs seconds for the steps of these tests
ENDLESS = 15_000  # tokens: far more than the deadline allows
FREED_S = 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[ChildServer]:
    limits = ("--metok-max-inflight", str(MAX_INFLIGHT), "--metok-request-timeout", str(DEADLINE_S))
    with running("--api-key", KEY, *limits) as server:
        yield server


@pytest.fixture
def http(server: ChildServer) -> Iterator[httpx.Client]:
    with client(server, KEY) as http:
        yield http


def works(http: httpx.Client) -> None:
    response = http.post(CHAT, json=chat("And now?"))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 4


def is_free(http: httpx.Client) -> None:
    wait_until(lambda: requests_running(http) == 0, FREED_S)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_key_is_needed(server: ChildServer, key: str | None) -> None:
    with client(server, key) as http:
        response = http.post(CHAT, json=chat("May I?"))
        assert "key" in is_envelope(response, 401)
        assert KEY not in response.text
        assert response.headers["www-authenticate"].startswith("Bearer")
        is_envelope(http.get("/v1/models"), 401)
        for path in ("/health", "/health/ready"):
            assert http.get(path).status_code == 200


def test_the_right_key_opens(http: httpx.Client) -> None:
    works(http)
    assert http.get("/v1/models").json()["data"][0]["id"] == MODEL


def test_too_many_at_once_and_the_deadline(server: ChildServer, http: httpx.Client) -> None:
    body = chat("Go on", tokens=ENDLESS)
    with client(server, KEY) as one, client(server, KEY) as two, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        whole = pool.submit(two.post, CHAT, json=body)
        with Stream(one, body) as stream:
            wait_until(lambda: requests_running(http) == MAX_INFLIGHT, DEADLINE_S / 2)
            response = http.post(CHAT, json=chat("Me too?"))
            assert str(MAX_INFLIGHT) in is_envelope(response, 429)
            assert int(response.headers["retry-after"]) > 0
        assert f"{DEADLINE_S:g} seconds" in is_envelope(whole.result(), 504)
        assert DEADLINE_S <= time.monotonic() - began < DEADLINE_S + FREED_S
    # A stream gets the error as an event and ends with [DONE].
    assert stream.failure is None
    assert stream.status == 200
    assert stream.done
    assert stream.events[-1]["error"]["code"] == 504
    assert f"{DEADLINE_S:g} seconds" in stream.events[-1]["error"]["message"]
    is_free(http)
    works(http)


def test_a_client_that_goes_away(server: ChildServer, http: httpx.Client) -> None:
    began = time.monotonic()
    with client(server, KEY) as leaving:
        body = chat("Go on", tokens=ENDLESS, stream=True)
        with leaving.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(9)]
            wait_until(lambda: requests_running(http) == 1, DEADLINE_S / 2)
    is_free(http)
    assert time.monotonic() - began < DEADLINE_S, (
        "the deadline, not the disconnect, ended the request"
    )
    works(http)
