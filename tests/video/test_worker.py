"""Worker processes import little, and exit with their server, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.video import clips

SERVER = """
import sys, threading, time, os
from metok_vllm.video import MediaLimits, read_video
from metok_vllm.video.pool import POOL
small, heavy, how = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read(), sys.argv[3]
limits = MediaLimits(decode_deadline_s=2)
assert "__main__" in sys.modules
read_video(small, 2, limits=limits)
if how == "fork":
    pid = os.fork()
    if pid == 0:
        assert len(read_video(small, 2, limits=limits).indices) == 2
        POOL.end_workers()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(read_video(small, 2, limits=limits).indices) == 2
print(*(worker.process.pid for worker in POOL._all), flush=True)
if how == "busy":
    threading.Thread(target=read_video, args=(heavy, 128), kwargs={"limits": limits}).start()
if how == "close":
    from tests.video.decoders import stopped_decoders
    def read():
        try:
            read_video(small, 2, limits=MediaLimits(decode_workers=2))
        except ValueError as error:
            os.write(2, f"ended: {error}".encode())
    with stopped_decoders(2):
        for _ in range(4):
            threading.Thread(target=read).start()
        queue = POOL.queue
        while len(queue._waiting) < 2 or not all(entry.kill for entry in queue._running):
            time.sleep(0.01)
        POOL.close()
if how in ("idle", "busy"):
    time.sleep(0.3)
    os.kill(os.getpid(), 9)
"""


def run_server(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Let a small server read videos and end in some way; it prints the pids of its workers.

    The deadline of its videos is 30 s, longer than the test may take.
    """
    small = clips.encode(options={"g": "12"})
    (tmp_path / "small").write_bytes(small)
    (tmp_path / "heavy").write_bytes(clips.heavy() if how == "busy" else b"")
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "small"), str(tmp_path / "heavy"), how],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == (-9 if how in ("idle", "busy") else 0), done.stderr
    return done


def running(pid: int) -> bool:
    """Whether a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("how", "within_s"), [("exit", 0.5), ("fork", 0.5), ("idle", 2.0), ("busy", 5.0)]
)
def test_workers_end_with_their_server(tmp_path: Path, how: str, within_s: float) -> None:
    workers = [int(pid) for pid in run_server(tmp_path, how).stdout.split()]
    assert workers
    deadline = time.monotonic() + within_s
    while any(running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if running(pid)]


def test_an_ending_server_does_not_wait_for_videos(tmp_path: Path) -> None:
    """Two are decoded and two wait, in threads that the interpreter waits for at its end."""
    done = run_server(tmp_path, "close")
    assert done.stderr.count("ended: the server is ending") == 4, done.stderr


def test_worker_imports_are_light() -> None:
    code = (
        "import sys, metok_vllm.video.worker, metok_vllm.video.decord_reader\n"
        "heavy = {'torch', 'vllm', 'transformers', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
