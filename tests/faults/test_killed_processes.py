"""SIGKILL, as from the OOM killer: clients get an answer, no process and no file is left."""

from __future__ import annotations

import httpx
import psutil
import pytest

from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import CHAT, is_envelope, video_part
from tests.faults.servers import (
    assert_gone,
    chat,
    client,
    decoders,
    engines,
    processes,
    running,
    shared_by,
    starting,
    workers,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

ENDS_S = 20.0  # a second on a quiet machine
# vLLM checks every five seconds whether its engine lives; until then the server is up.
WATCHDOG_S = 20.0


def replace_decoders(server: ChildServer, http: httpx.Client) -> None:
    """Kill the video decoders; the next request starts others."""
    assert http.post(CHAT, json=chat("What is it?", video_part())).status_code == 200
    killed = decoders(server)
    assert killed
    for decoder in killed:
        decoder.kill()
    response = http.post(CHAT, json=chat("What is it?", video_part()))
    assert response.status_code == 200, response.text
    assert response.json()["metok"]["visual_tokens"]["dense"] == 513
    assert decoders(server)
    assert_gone(killed, set(), ENDS_S)
    assert not {p.pid for p in killed} & {p.pid for p in decoders(server)}


@pytest.mark.parametrize("victim", ["server", "engine", "worker"])
def test_a_killed_process_leaves_nothing(victim: str) -> None:
    """While a long answer is decoded and decoders of videos run."""
    with running() as server, client(server) as http, client(server) as other:
        replace_decoders(server, http)
        with Stream(other, chat("Go on", tokens=12_000)) as stream:
            members = processes(server)
            files = shared_by(members)
            assert len(files) > 1, f"vLLM's message queues and sockets are missing: {files}"
            (target,) = {
                "server": [psutil.Process(server.process.pid)],
                "engine": engines(server),
                "worker": workers(server),
            }[victim]
            target.kill()
            if victim == "server":
                server.process.wait(ENDS_S)
            else:
                if victim == "engine":
                    assert_clients_are_refused(http, stream)
                assert server.process.wait(WATCHDOG_S + ENDS_S) == 1
            assert_gone(members, files, ENDS_S)
        with pytest.raises(httpx.ConnectError):
            http.get("/health")


def assert_clients_are_refused(http: httpx.Client, stream: Stream) -> None:
    """Open and new requests get a 503 that names the engine."""
    wait_until(lambda: http.get("/health").status_code != 200, WATCHDOG_S)
    is_envelope(http.get("/health"), 503)
    assert "engine" in is_envelope(http.get("/health/ready"), 503)
    assert "engine" in is_envelope(http.post(CHAT, json=chat("Are you there?")), 503)
    stream.finish()
    assert stream.failure is None
    assert stream.done
    assert stream.events[-1]["error"]["code"] == 503


def test_a_killed_server_that_still_loads_leaves_nothing() -> None:
    with starting() as server:
        wait_until(lambda: bool(workers(server)), 240)
        members = processes(server)
        files = shared_by(members)
        server.process.kill()
        server.process.wait(ENDS_S)
        # A process that still imports vLLM checks its parent once it loads plugins.
        assert_gone(members, files, 30)
