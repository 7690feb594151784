"""Memory of a server's processes, by what they do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

from metok_vllm.benchmarks.throughput.host import ROLES, ROOT_ROLE

MIB = 1 << 20


@dataclass(frozen=True)
class Look:
    """Resident memory in MiB and number of processes by role, and names in shared memory."""

    rss_mib: Mapping[str, float]
    processes: Mapping[str, int]
    shared_memory: frozenset[str]


def listening_process(url: str) -> int:
    """The process that listens on the port of `url` on this machine. ValueError if none is seen."""
    port = httpx.URL(url).port
    for connection in psutil.net_connections("tcp"):
        address, pid = connection.laddr, connection.pid
        listens = connection.status == psutil.CONN_LISTEN and address and address.port == port
        if listens and pid is not None:
            return pid
    raise ValueError(f"no process of this machine listens on the port of {url}")


def look(pid: int) -> Look:
    """What the server `pid` and its children hold now."""
    rss: dict[str, float] = {}
    count: dict[str, int] = {}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            role = _role(process, pid)
            rss[role] = rss.get(role, 0.0) + process.memory_info().rss / MIB
            count[role] = count.get(role, 0) + 1
    return Look(rss, count, frozenset(os.listdir("/dev/shm")))


def _role(process: psutil.Process, root: int) -> str:
    title = " ".join([process.name(), *process.cmdline()])
    found = next((role for word, role in ROLES.items() if word in title), None)
    return found or (ROOT_ROLE if process.pid == root else "other")
