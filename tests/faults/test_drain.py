"""A server that is told to end finishes what it began, refuses the rest and leaves nothing."""

from __future__ import annotations

import signal

import pytest

from tests.conformance.conftest import video_part
from tests.conformance.test_bad_input import is_envelope
from tests.faults.servers import (
    assert_nothing_left,
    chat,
    client,
    decoders,
    processes,
    requests_running,
    running,
    shared_memory,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

CHAT = "/v1/chat/completions"
TOKENS = 4_000  # many seconds of decoding, on a fast machine too
NOTICED_S = 5.0


def test_sigterm_lets_answers_finish() -> None:
    memory = shared_memory()
    limits = ("--metok-request-timeout", "0", "--shutdown-timeout", "200")
    with running(*limits) as server, client(server) as http, client(server) as other:
        assert http.post(CHAT, json=chat("What is it?", video_part())).status_code == 200
        members = processes(server)
        assert decoders(server)
        assert shared_memory() > memory, "vLLM's message queues lie there"
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
        assert_nothing_left(server, members, memory)
