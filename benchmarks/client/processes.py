"""Host CPU of a server: seconds that every process of its tree used, by what the process does.

On a GPU this is what a step costs beside the device; on a CPU backend it holds the model too.
"""
# MERGED DOC
# """Memory of a server's processes, by what they do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

EVERY_S = 0.5
# The first word found in a process's title or command line says what it does.
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
    """CPU seconds by role over `wall_s` seconds, and the most memory the tree held, in bytes."""

    wall_s: float
    cpu_s: Mapping[str, float]
    peak_rss: int

    @property
    def cores(self) -> float:
        """Cores kept busy on average."""
        return sum(self.cpu_s.values()) / self.wall_s if self.wall_s > 0 else 0.0


class HostMeter:
    """An async context around a run. Processes that end meanwhile count up to their last look."""

    def __init__(self, pid: int | None, every_s: float = EVERY_S) -> None:
        self._pid = pid
        self._every_s = every_s
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._role: dict[int, str] = {}
        self._peak_rss = 0
        self._started_s = 0.0
        self._wall_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HostMeter:
        if self._pid is not None:
            self._started_s = time.perf_counter()
            self._look(first=True)
            self._task = asyncio.create_task(self._repeat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._look()
            self._wall_s = time.perf_counter() - self._started_s

    def use(self) -> HostUse | None:
        """What was used; None without a process to look at."""
        if not self._last:
            return None
        cpu_s: dict[str, float] = {}
        for pid, seconds in self._last.items():
            role = self._role[pid]
            cpu_s[role] = cpu_s.get(role, 0.0) + seconds - self._first.get(pid, 0.0)
        return HostUse(self._wall_s, cpu_s, self._peak_rss)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await asyncio.to_thread(self._look)

    def _look(self, first: bool = False) -> None:
        """Read the clocks of all processes. One that is new during the run started from 0."""
        rss = 0
        for process in self._tree():
            with suppress(psutil.Error):
                with process.oneshot():
                    used = process.cpu_times()
                    rss += process.memory_info().rss
                    if process.pid not in self._role:
                        self._role[process.pid] = self._role_of(process)
                self._last[process.pid] = used.user + used.system
                if first:
                    self._first[process.pid] = self._last[process.pid]
        self._peak_rss = max(self._peak_rss, rss)

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _role_of(self, process: psutil.Process) -> str:
        title = " ".join([process.name(), *process.cmdline()])
        found = next((role for word, role in ROLES.items() if word in title), None)
        return found or (ROOT_ROLE if process.pid == self._pid else "other")


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
