"""A server as a child process: started, awaited until ready, ended with all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from metok_vllm.console import CommandError, complain

SERVE = (sys.executable, "-m", "metok_vllm.cli", "serve")
STOP_S = 40.0
LINGER_S = 5.0


class ChildServer:
    """A server in a session of its own, by which all its processes are found.

    `--host` and `--port` are added to `command`; without `port` a free one is chosen. `environ`
    None means the environment of this process. Leaving the context ends the server, which has
    `stop_s` seconds for an orderly exit. The log is kept only after a failure.
    """

    ready_path = "/health/ready"  # answers 200 once the server accepts requests

    def __init__(
        self,
        command: Sequence[str],
        stop_s: float = STOP_S,
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.stop_s = stop_s
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        handle, name = tempfile.mkstemp(prefix="metok-serve-", suffix=".log")
        self.log = Path(name)
        with os.fdopen(handle, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        self._processes: dict[int, psutil.Process] = {}

    def __enter__(self) -> ChildServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self.stop()
        if kind is None and not left:
            self.log.unlink(missing_ok=True)
        if kind is None and left:
            raise CommandError(f"processes of the server are left: {left}; log: {self.log}")

    def wait_until_ready(self, timeout_s: float) -> float:
        """Seconds until `ready_path` answered 200. Raises CommandError if it never does."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self.process.poll() is not None:
                raise CommandError(
                    f"the server ended with status {self.process.returncode} before it was ready"
                )
            try:
                # trust_env=False: no proxy for requests to this machine.
                ready = httpx.get(f"{self.url}{self.ready_path}", timeout=5, trust_env=False)
                if ready.status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise CommandError(f"the server was not ready within {timeout_s:.0f} s")

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> list[int]:
        """SIGTERM to the server, SIGKILL to all its processes that remain. Ids of survivors."""
        self._find_processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(self.stop_s)
        except subprocess.TimeoutExpired:
            complain(f"the server did not end within {self.stop_s:.0f} s and is killed")
            self._find_processes()
            self.process.kill()
            self.process.wait()
        self._find_processes()
        # Workers normally exit right after the server.
        linger_s = min(self.stop_s, LINGER_S)
        _, alive = psutil.wait_procs(list(self._processes.values()), timeout=linger_s)
        for process in alive:
            complain(f"a process that the server left behind is killed: {process.pid}")
            process.kill()
        _, alive = psutil.wait_procs(alive, timeout=LINGER_S)
        return sorted(process.pid for process in alive if _runs(process))

    def _find_processes(self) -> None:
        """Record every process of the server's session, and its children in other sessions."""
        session = self.process.pid
        for process in psutil.process_iter():
            try:
                if process.pid != session and os.getsid(process.pid) == session:
                    self._processes.setdefault(process.pid, process)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            for child in psutil.Process(session).children(recursive=True):
                self._processes.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass


def _runs(process: psutil.Process) -> bool:
    """Whether it exists and is not a zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port of this machine on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
