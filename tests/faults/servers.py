"""Real servers that are about to be hurt: what to send them, and what belongs to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.conformance.conftest import MODEL, messages
from tests.environment import STARTED_WITH
from tests.waiting import wait_until

KEY = "a-key-for-tests"
SHARED_MEMORY = Path("/dev/shm")
GONE_S = 10.0
# Engine and worker spin on both cores of a small machine: the client that watches them goes first.
POLITE = ("nice", "-n", "10")


@contextmanager
def starting(*flags: str) -> Iterator[ChildServer]:
    """A `metok serve --demo` that has just been started."""
    with ChildServer([*POLITE, *SERVE, "--demo", *flags], environ=STARTED_WITH) as server:
        try:
            yield server
        except BaseException:
            print(server.log_tail(60))
            raise


@contextmanager
def running(*flags: str) -> Iterator[ChildServer]:
    """A `metok serve --demo` that takes requests."""
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
    """A request that is answered with exactly `tokens` tokens: a few milliseconds each."""
    return {
        "model": MODEL,
        "messages": messages(text, *parts),
        "max_tokens": tokens,
        "ignore_eos": True,
        **more,
    }


def requests_running(http: httpx.Client) -> float:
    """vLLM's own count of the requests that its engine works on or holds."""
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
    """Every process of the server's session, and its children wherever they are."""
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


def shared_memory() -> set[str]:
    """Files in the machine's shared memory."""
    return {entry.name for entry in SHARED_MEMORY.iterdir()}


def assert_nothing_left(
    server: ChildServer, before_end: list[psutil.Process], memory_before_start: set[str]
) -> None:
    """No process of the ended server, those seen earlier included, and no shared memory."""
    assert server.process.poll() is not None

    def left() -> list[psutil.Process]:
        return [p for p in {*before_end, *processes(server)} if p.is_running() and not _over(p)]

    wait_until(lambda: not left(), GONE_S)
    assert shared_memory() <= memory_before_start


def _over(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
