"""A server that is asked, and told to end, before its engine is up."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import httpx
import pytest

from tests.conformance.test_bad_input import is_envelope
from tests.faults.servers import (
    assert_nothing_left,
    chat,
    client,
    engines,
    processes,
    shared_memory,
    starting,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

LISTENS_S = 60.0
ENGINE_S = 120.0
QUICK_S = 12.0  # most of it for an engine that is busy importing


def test_sigterm_while_loading() -> None:
    memory = shared_memory()
    with starting() as server, client(server) as http:

        def listens() -> bool:
            assert server.process.poll() is None
            with suppress(httpx.ConnectError):
                return http.get("/health/ready").status_code == 503
            return False

        wait_until(listens, LISTENS_S)
        for path in ("/health/ready", "/health", "/v1/models"):
            response = http.get(path)
            assert "loading" in is_envelope(response, 503)
            assert int(response.headers["retry-after"]) > 0
        is_envelope(http.post("/v1/chat/completions", json=chat("Already?")), 503)

        wait_until(lambda: bool(engines(server)), ENGINE_S)
        is_envelope(http.get("/health/ready"), 503)
        members = processes(server)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert server.process.wait(QUICK_S) == 128 + signal.SIGTERM
        assert time.monotonic() - told < QUICK_S
        assert_nothing_left(server, members, memory)
