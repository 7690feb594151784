"""Real servers for fault tests: requests to send, and the processes and files of a server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from metok_vllm.processes import lifetime
from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.conformance.requests import MODEL, messages
from tests.environment import STARTED_WITH

KEY = "a-key-for-tests"
SHARED_MEMORY = Path("/dev/shm")
# Engine and worker spin on both cores of a small machine; the test's client has priority.
POLITE = ("nice", "-n", "10")


@contextmanager
def starting(*flags: str) -> Iterator[ChildServer]:
    """A `metok serve --demo` that is still loading."""
    with ChildServer([*POLITE, *SERVE, "--demo", *flags], environ=STARTED_WITH) as server:
        try:
            yield server
        except BaseException:
            print(server.log_tail(60))
            raise


@contextmanager
def running(*flags: str) -> Iterator[ChildServer]:
    """A `metok serve --demo` that is ready."""
    with starting(*flags) as server:
        server.wait_until_ready(240)
        yield server


def client(server: ChildServer, key: str | None = None, timeout_s: float = 60) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(
        base_url=server.url,
        headers=headers,
        timeout=timeout_s,
        trust_env=False,
        follow_redirects=False,
    )


def chat(text: str, *parts: dict[str, Any], tokens: int = 4, **more: Any) -> dict[str, Any]:
    """A request whose answer has exactly `tokens` tokens, a few milliseconds each."""
    return {
        "model": MODEL,
        "messages": messages(text, *parts),
        "max_tokens": tokens,
        "ignore_eos": True,
        **more,
    }


def requests_running(http: httpx.Client) -> float:
    """vLLM's count of running and waiting requests."""
    text = http.get("/metrics").text
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in names
    ]
    assert len(found) == len(names)
    return sum(found)


def processes(server: ChildServer) -> list[psutil.Process]:
    """Every process of the server's session, and its children in other sessions."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == server.process.pid:
                found[process.pid] = process
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(server.process.pid).children(recursive=True):
            found[child.pid] = child
    return list(found.values())


def named(server: ChildServer, words: str) -> list[psutil.Process]:
    """The server's processes with `words` on their command line."""
    found = []
    for process in processes(server):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def engines(server: ChildServer) -> list[psutil.Process]:
    return named(server, "EngineCore")


def decoders(server: ChildServer) -> list[psutil.Process]:
    return named(server, "metok_vllm.video.worker")


def workers(server: ChildServer) -> list[psutil.Process]:
    return named(server, "Worker")


def shared_by(members: list[psutil.Process]) -> set[Path]:
    """Files in shared memory that these processes have mapped, and the folder of their sockets."""
    found: set[Path] = set()
    for process in members:
        with suppress(psutil.Error):
            sockets = (Path(str(socket.laddr)).parent for socket in process.net_connections("unix"))
            found |= {path for path in sockets if path.name.startswith(lifetime.RPC_PREFIX)}
            paths = (Path(mapped.path) for mapped in process.memory_maps())
            found |= {path for path in paths if path.parent == SHARED_MEMORY and path.exists()}
    return found


def assert_gone(members: list[psutil.Process], files: set[Path], within_s: float) -> None:
    """All these processes end and all these files are removed within the time."""
    deadline = time.monotonic() + within_s
    while (found := _left(members, files)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found, f"left after {within_s} s: {found}"


def _left(members: list[psutil.Process], files: set[Path]) -> str:
    """Processes and files that are still there, in words."""
    found = [str(path) for path in files if path.exists()]
    for process in members:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:60])
    return ", ".join(found)
