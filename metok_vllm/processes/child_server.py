"""A `metok serve` of our own as a child process: started, awaited, ended with all it started."""

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
    """A server in a session of its own, so that every process it starts can be found again.

    `command` is given `--host` and `--port` on top; the port is a free one where none is given.
    `environ` None: the environment of this process.
    Leaving the context ends the server, with `stop_s` seconds to do so by itself. The log is
    removed with it unless something failed; `log_tail` reads it.
    """

    ready_path = "/health/ready"  # answers 200 once requests are taken

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
        self._seen: dict[int, psutil.Process] = {}

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
                # No proxy of the environment stands between this machine and itself.
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
        """End the server: SIGTERM to it, SIGKILL to what stays. The ids of those still there."""
        self._look()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(self.stop_s)
        except subprocess.TimeoutExpired:
            complain(f"the server did not end within {self.stop_s:.0f} s and is killed")
            self._look()
            self.process.kill()
            self.process.wait()
        self._look()
        # Workers follow the server within moments; only what does not is killed.
        linger_s = min(self.stop_s, LINGER_S)
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=linger_s)
        for process in alive:
            complain(f"a process that the server left behind is killed: {process.pid}")
            process.kill()
        _, alive = psutil.wait_procs(alive, timeout=LINGER_S)
        return sorted(process.pid for process in alive if _runs(process))

    def _look(self) -> None:
        """Remember every process of the server's session, and its children elsewhere."""
        session = self.process.pid
        for process in psutil.process_iter():
            try:
                if process.pid != session and os.getsid(process.pid) == session:
                    self._seen.setdefault(process.pid, process)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            for child in psutil.Process(session).children(recursive=True):
                self._seen.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass


def _runs(process: psutil.Process) -> bool:
    """Whether it is still there, and not only waiting for its parent to notice its end."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
