"""An engine that is killed: nobody is left waiting, and the server ends so that it is restarted."""

from __future__ import annotations

import httpx
import pytest

from tests.conformance.test_bad_input import is_envelope
from tests.faults.servers import (
    assert_nothing_left,
    chat,
    client,
    engines,
    processes,
    running,
    shared_memory,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

# vLLM looks every five seconds whether its engine lives, and ends the server if not.
WATCHDOG_S = 5.0


def test_a_killed_engine() -> None:
    memory = shared_memory()
    with running() as server, client(server) as http, client(server) as other:
        with Stream(other, chat("Go on", tokens=12_000)) as stream:
            members = processes(server)
            (engine,) = engines(server)
            assert http.get("/health").status_code == 200
            engine.kill()
            wait_until(lambda: http.get("/health").status_code != 200, WATCHDOG_S)
            is_envelope(http.get("/health"), 503)
            assert "engine" in is_envelope(http.get("/health/ready"), 503)
            assert "engine" in is_envelope(
                http.post("/v1/chat/completions", json=chat("Are you there?")), 503
            )
            stream.finish()
        assert stream.failure is None
        assert stream.done
        assert stream.events[-1]["error"]["code"] == 503

        assert server.process.wait(2 * WATCHDOG_S + 10) == 1
        with pytest.raises(httpx.ConnectError):
            http.get("/health")
        assert_nothing_left(server, members, memory)
