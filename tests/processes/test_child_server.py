"""A child server is awaited until ready, and ended with all its processes."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from metok_vllm.console import CommandError
from metok_vllm.processes.child_server import ChildServer

# A server that starts a worker. As "stubborn", both ignore SIGTERM, and the worker leaves the
# session as a daemon does.
SERVER = """
import http.server, signal, subprocess, sys
stubborn = "stubborn" in sys.argv
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=stubborn
)
print("worker", worker.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_ends_with_all_its_processes(manner: str) -> None:
    with ChildServer([sys.executable, "-c", SERVER, manner], stop_s=0.5) as server:
        server.wait_until_ready(30)
        log = server.log
        worker = psutil.Process(int(server.log_tail().split()[1]))
        assert worker.is_running()
    assert server.process.poll() is not None
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert not log.exists()


def test_a_server_that_exits_is_an_error() -> None:
    code = "import sys; sys.exit('no such model')"
    with (
        pytest.raises(CommandError, match="status 1 before it was ready"),
        ChildServer([sys.executable, "-c", code]) as server,
    ):
        server.wait_until_ready(30)
    assert "no such model" in server.log_tail()
    assert server.log.exists(), "the log stays after a failure"
    server.log.unlink()


def test_a_server_that_never_becomes_ready(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"
    with (
        pytest.raises(CommandError, match="not ready within 1 s"),
        ChildServer([sys.executable, "-c", code], stop_s=5) as server,
    ):
        server.wait_until_ready(1)
    assert server.process.poll() is not None
    server.log.unlink()
