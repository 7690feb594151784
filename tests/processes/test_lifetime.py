"""Processes exit with their parent, however busy; the socket folder is removed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from metok_vllm.processes import lifetime
from tests.waiting import wait_until

START_S, ENDS_S = 30.0, 5.0
WORK = {
    "python": "while True: pass",
    "a long call": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)",
    "no SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
}
PROGRAM = """
import multiprocessing, os, sys, threading, time
from metok_vllm.processes.lifetime import watch_parent

def last(folder):
    assert watch_parent()
    {work}

def middle(folder, way, work):
    assert watch_parent()
    child = multiprocessing.get_context(way).Process(target=last, args=(folder,))
    child.start()
    say(folder, child.pid)
    {work}

def say(folder, *pids):
    with open(os.path.join(folder, "pids"), "a") as file:
        file.write("".join(f"{{pid}}\\n" for pid in pids))

def begin(folder, way):
    child = multiprocessing.get_context(way).Process(target=middle, args=(folder, way, 0))
    child.start()
    say(folder, child.pid)

if __name__ == "__main__":
    assert not watch_parent()
    # The thread that starts a process may end long before the process does.
    thread = threading.Thread(target=begin, args=sys.argv[1:3])
    thread.start()
    thread.join()
    time.sleep(600)
"""


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("way", ["spawn", "fork", "forkserver"])
def test_a_chain_of_processes_ends_with_its_first(tmp_path: Path, way: str, work: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(work=WORK[work])))
    pids = tmp_path / "pids"
    first = subprocess.Popen([sys.executable, str(program), str(tmp_path), way])
    try:
        wait_until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2, START_S)
        children = [psutil.Process(int(pid)) for pid in pids.read_text().splitlines()]
        assert all(child.is_running() for child in children)
    finally:
        first.kill()
        first.wait()
    try:
        wait_until(lambda: not any(_runs(child) for child in children), ENDS_S)
    finally:
        for child in children:
            if _runs(child):
                child.kill()


def test_processes_of_a_living_parent_go_on() -> None:
    program = (
        "import multiprocessing, time\n"
        "from metok_vllm.processes.lifetime import watch_parent\n"
        "def work():\n    assert watch_parent()\n    time.sleep(3)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('fork').Process(target=work)\n"
        "    child.start()\n    child.join()\n    raise SystemExit(child.exitcode)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=START_S).returncode == 0


def test_a_closed_socket_ends_a_busy_process() -> None:
    ours, theirs = socket.socketpair()
    program = (
        "import os\nfrom metok_vllm.processes.lifetime import watch_socket\n"
        "watch_socket(0)\nos.write(0, b'r')\nwhile True: pass\n"
    )
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=theirs.fileno())
    with ours:
        assert ours.recv(1) == b"r"
        assert process.poll() is None
    assert process.wait(ENDS_S) in (1, -signal.SIGTERM)


@pytest.mark.slow
def test_the_plugin_watches_only_where_the_variable_is_set() -> None:
    program = (
        "import multiprocessing, threading\n"
        "def work():\n"
        "    from metok_vllm.engine.plugin import register\n"
        "    register()\n"
        "    names = [thread.name for thread in threading.enumerate()]\n"
        "    raise SystemExit('metok-parent-watch' in names)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('fork').Process(target=work)\n"
        "    child.start()\n    child.join()\n    raise SystemExit(child.exitcode)\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != "METOK_WATCH_PARENT"}
    assert subprocess.run([sys.executable, "-c", program], env=environ, timeout=120).returncode == 0


def test_the_socket_folder_is_private_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ: dict[str, str] = {}
    lifetime.make_rpc_folder(environ)
    folder = Path(environ[lifetime.RPC_VARIABLE])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0, "no other user may connect"
    (folder / "a-socket").touch()
    lifetime.remove_rpc_folder(environ)
    lifetime.remove_rpc_folder(environ)
    assert list(tmp_path.iterdir()) == []


def test_a_users_socket_folder_stays(tmp_path: Path) -> None:
    environ = {lifetime.RPC_VARIABLE: str(tmp_path)}
    lifetime.make_rpc_folder(environ)
    lifetime.remove_rpc_folder(environ)
    assert environ == {lifetime.RPC_VARIABLE: str(tmp_path)}
    assert tmp_path.exists()
    lifetime.remove_rpc_folder({})


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
