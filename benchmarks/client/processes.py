"""CPU seconds and memory of a server's process tree, by the role of each process.

On a GPU the CPU seconds are the host's cost beside the device. On a CPU they include the model.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

from metok_vllm.benchmarks.client.scrape import stop_task

EVERY_S = 0.5
MIB = 1 << 20
# The first of these words in a process's title or command line gives its role.
ROLES = {
    "EngineCore": "engine core",
    "Worker": "workers",
    "metok_vllm.video.worker": "video decoders",
    "resource_tracker": "other",
    "APIServer": "API server",
}
ROOT_ROLE = "API server"


@dataclass(frozen=True)
class HostUse:
    """CPU seconds by role over `wall_s` seconds, and the tree's peak resident memory in bytes."""

    wall_s: float
    cpu_s: Mapping[str, float]
    peak_rss: int

    @property
    def cores(self) -> float:
        """Mean number of busy cores."""
        return sum(self.cpu_s.values()) / self.wall_s if self.wall_s > 0 else 0.0


class HostMeter:
    """An async context that samples a process tree during a run.

    A process that ends during the run counts up to its last sample.
    """

    def __init__(self, pid: int | None, every_s: float = EVERY_S) -> None:
        self._pid = pid
        self._every_s = every_s
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        self._role: dict[int, str] = {}
        self._peak_rss = 0
        self._started_s = 0.0
        self._wall_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HostMeter:
        if self._pid is not None:
            self._started_s = time.perf_counter()
            self._sample()
            self._first_s = dict(self._last_s)
            self._task = asyncio.create_task(self._repeat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pid is not None:
            await stop_task(self._task)
            self._sample()
            self._wall_s = time.perf_counter() - self._started_s

    def use(self) -> HostUse | None:
        """The use during the run; None without a process."""
        if not self._last_s:
            return None
        cpu_s: dict[str, float] = {}
        for pid, seconds in self._last_s.items():
            role = self._role[pid]
            # A process that started during the run started from 0.
            cpu_s[role] = cpu_s.get(role, 0.0) + seconds - self._first_s.get(pid, 0.0)
        return HostUse(self._wall_s, cpu_s, self._peak_rss)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await asyncio.to_thread(self._sample)

    def _sample(self) -> None:
        assert self._pid is not None
        rss = 0
        for process in _tree(self._pid):
            with suppress(psutil.Error):
                with process.oneshot():
                    used = process.cpu_times()
                    rss += process.memory_info().rss
                    if process.pid not in self._role:
                        self._role[process.pid] = _role(process, self._pid)
                self._last_s[process.pid] = used.user + used.system
        self._peak_rss = max(self._peak_rss, rss)


@dataclass(frozen=True)
class MemoryUse:
    """Resident MiB and number of processes by role, and the names in shared memory."""

    rss_mib: Mapping[str, float]
    processes: Mapping[str, int]
    shared_memory: frozenset[str]


def memory_use(pid: int) -> MemoryUse:
    """The current memory of the server `pid` and its children."""
    rss: dict[str, float] = {}
    count: dict[str, int] = {}
    for process in _tree(pid):
        with suppress(psutil.Error):
            role = _role(process, pid)
            rss[role] = rss.get(role, 0.0) + process.memory_info().rss / MIB
            count[role] = count.get(role, 0) + 1
    return MemoryUse(rss, count, frozenset(os.listdir("/dev/shm")))


def listening_process(url: str) -> int:
    """The local process that listens on the port of `url`. Raises ValueError if there is none."""
    port = httpx.URL(url).port
    for connection in psutil.net_connections("tcp"):
        address, pid = connection.laddr, connection.pid
        listens = connection.status == psutil.CONN_LISTEN and address and address.port == port
        if listens and pid is not None:
            return pid
    raise ValueError(f"no process of this machine listens on the port of {url}")


def _tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        yield from [root, *root.children(recursive=True)]


def _role(process: psutil.Process, root: int) -> str:
    title = " ".join([process.name(), *process.cmdline()])
    found = next((role for word, role in ROLES.items() if word in title), None)
    return found or (ROOT_ROLE if process.pid == root else "other")
