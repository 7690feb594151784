"""SIGTERM: the server finishes its answers, refuses new requests and leaves nothing behind."""

from __future__ import annotations

import signal
from contextlib import suppress

import httpx
import pytest

from tests.conformance.requests import CHAT, is_envelope, video_part
from tests.faults.servers import (
    assert_gone,
    chat,
    client,
    decoders,
    engines,
    processes,
    requests_running,
    running,
    shared_by,
    starting,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

TOKENS = 4_000  # many seconds of decoding, on a fast machine too
NOTICED_S, GONE_S = 5.0, 10.0
LISTENS_S, ENGINE_S = 60.0, 120.0
QUICK_S = 12.0  # mostly for an engine process that is still importing


def test_while_serving() -> None:
    limits = ("--metok-request-timeout", "0", "--shutdown-timeout", "200")
    with running(*limits) as server, client(server) as http, client(server) as other:
        assert http.post(CHAT, json=chat("What is it?", video_part())).status_code == 200
        members = processes(server)
        assert decoders(server)
        files = shared_by(members)
        assert len(files) > 1, f"vLLM's message queues and sockets are missing: {files}"
        body = chat("Go on", tokens=TOKENS, stream_options={"include_usage": True})
        with Stream(other, body) as stream:
            wait_until(lambda: requests_running(http) == 1, NOTICED_S)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http.get("/health/ready").status_code != 200, NOTICED_S)
            assert "draining" in is_envelope(http.get("/health/ready"), 503)
            refused = http.post(CHAT, json=chat("One more?"))
            assert "shutting down" in is_envelope(refused, 503)
            assert int(refused.headers["retry-after"]) > 0
            stream.finish()
        assert stream.failure is None
        assert stream.done
        assert stream.events[-1]["usage"]["completion_tokens"] == TOKENS
        assert server.process.wait(20) == 0
        assert_gone([*members, *processes(server)], files, GONE_S)


def test_while_loading() -> None:
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
        is_envelope(http.post(CHAT, json=chat("Already?")), 503)

        wait_until(lambda: bool(engines(server)), ENGINE_S)
        is_envelope(http.get("/health/ready"), 503)
        members = processes(server)
        files = shared_by(members)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(QUICK_S) == 128 + signal.SIGTERM
        assert_gone([*members, *processes(server)], files, GONE_S)
