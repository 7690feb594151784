"""SIGKILL, as for want of memory, to each kind of process: five seconds later nothing is left."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from metok_vllm.processes import rpc_folder
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.conftest import video_part
from tests.faults.servers import (
    SHARED_MEMORY,
    chat,
    client,
    decoders,
    engines,
    named,
    processes,
    running,
    starting,
)
from tests.faults.streams import Stream
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

CHAT = "/v1/chat/completions"
ENDS_S = 5.0
# vLLM looks every five seconds whether its engine lives; until then the server is up.
NOTICED_S = 5.0


def shared_by(members: list[psutil.Process]) -> set[Path]:
    """Files in shared memory that these processes have mapped, and the folder of their sockets.

    Other servers may run here.
    """
    found: set[Path] = set()
    for process in members:
        with suppress(psutil.Error):
            sockets = (Path(str(socket.laddr)).parent for socket in process.net_connections("unix"))
            found |= {path for path in sockets if path.name.startswith(rpc_folder.PREFIX)}
            paths = (Path(mapped.path) for mapped in process.memory_maps())
            found |= {path for path in paths if path.parent == SHARED_MEMORY and path.exists()}
    return found


def left(members: list[psutil.Process], memory: set[Path]) -> str:
    """What is still there, in words."""
    found = [str(path) for path in memory if path.exists()]
    for process in members:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:60])
    return ", ".join(found)


def assert_gone(members: list[psutil.Process], memory: set[Path], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (found := left(members, memory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found, f"left after {within_s} s: {found}"


def workers(server: ChildServer) -> list[psutil.Process]:
    return named(server, "Worker")


@pytest.mark.parametrize("victim", ["server", "engine", "worker"])
def test_a_killed_process_leaves_nothing(victim: str) -> None:
    """While a long answer is decoded, and decoders have been started."""
    with running() as server, client(server) as http, client(server) as other:
        assert http.post(CHAT, json=chat("What is it?", video_part())).status_code == 200
        with Stream(other, chat("Go on", tokens=12_000)):
            members = [*processes(server), *decoders(server)]
            assert decoders(server)
            memory = shared_by(members)
            assert len(memory) > 1, f"vLLM's message queues and sockets lie there: {memory}"
            (target,) = {
                "server": [psutil.Process(server.process.pid)],
                "engine": engines(server),
                "worker": workers(server),
            }[victim]
            target.kill()
            if victim == "server":
                server.process.wait(2)
                assert_gone(members, memory, ENDS_S)
            else:
                assert server.process.wait(NOTICED_S + ENDS_S) == 1
                assert_gone(members, memory, ENDS_S)


def test_a_killed_server_that_still_loads_leaves_nothing() -> None:
    with starting() as server:
        wait_until(lambda: bool(workers(server)), 120)
        members = processes(server)
        memory = shared_by(members)
        server.process.kill()
        server.process.wait(2)
        # A process that still imports vLLM looks when its plugins are loaded.
        assert_gone(members, memory, 30)


def test_a_killed_decoder_is_replaced() -> None:
    with running() as server, client(server) as http:
        assert http.post(CHAT, json=chat("What is it?", video_part())).status_code == 200
        killed = decoders(server)
        for decoder in killed:
            decoder.kill()
        assert http.post(CHAT, json=chat("And now?", video_part())).status_code == 200
        assert not left(killed, set())
        assert not {p.pid for p in killed} & {p.pid for p in decoders(server)}
        members = processes(server)
        memory = shared_by(members)
        server.process.kill()
        server.process.wait(2)
        assert_gone(members, memory, ENDS_S)
