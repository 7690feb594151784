"""Two servers at once: ready in the context, ended after it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from metok_vllm.benchmarks.throughput import launch, servers
from metok_vllm.benchmarks.throughput.servers import LAUNCH, memory_share, started
from metok_vllm.console import CommandError
from tests.waiting import wait_until

# Answers one path with 200 after a while. Its worker ends with it; both ids go to a file.
SERVER = """
import http.server, os, subprocess, sys, time
path, pids = sys.argv[1:3]
wait = "import sys; sys.stdin.read()"
worker = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE)
with open(pids, "a") as file:
    print(path, os.getpid(), worker.pid, os.environ.get("THP_MEM_ALLOC_ENABLE"), file=file)
if path == "dead":
    sys.exit("out of memory")
born = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = time.monotonic() > born + 0.3
        self.send_response(404 if self.path != path else 200 if ready else 503)
        self.end_headers()
    def log_message(self, *args):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Fakes:
    """Commands of servers that record their process ids."""

    def __init__(self, folder: Path) -> None:
        self.pids = folder / "pids"

    def command(self, path: str) -> tuple[str, ...]:
        return (*LAUNCH, "-c", SERVER, path, str(self.pids))

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.pids.read_text().splitlines()]

    def alive(self) -> list[int]:
        return [int(pid) for line in self.lines() for pid in line[1:3] if runs(int(pid))]


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    # The logs of failed servers stay in the temporary folder.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fakes = Fakes(tmp_path)
    yield fakes
    for pid in fakes.alive():
        psutil.Process(pid).kill()


def test_the_record_has_the_allocator_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    monkeypatch.setenv("LD_PRELOAD", "/home/me/libtcmalloc.so.4:/opt/libiomp5.so")
    recorded = launch.recorded()
    assert recorded["LD_PRELOAD"] == "libtcmalloc.so.4:libiomp5.so"
    assert recorded["THP_MEM_ALLOC_ENABLE"] == "1"
    assert "GLIBC_TUNABLES" not in recorded


def test_both_are_ready_one_started_after_the_other(fakes: Fakes) -> None:
    with started(fakes.command("/health"), fakes.command("/health/ready"), 30) as pair:
        assert httpx.get(f"{pair.plain.url}/health", trust_env=False).status_code == 200
        assert httpx.get(f"{pair.metok.url}/health/ready", trust_env=False).status_code == 200
        paths = [line[0] for line in fakes.lines()]
        assert paths == ["/health", "/health/ready"]
        assert [int(line[1]) for line in fakes.lines()] == [
            pair.plain.process.pid,
            pair.metok.process.pid,
        ]
        assert len(fakes.alive()) == 4
        assert {line[3] for line in fakes.lines()} == {"1"}
    assert not fakes.alive()
    assert not pair.plain.log.exists()
    assert not pair.metok.log.exists()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("dead", "/health/ready"), "plain vLLM: the server ended with status 1"),
        (("/health", "dead"), "METok: the server ended with status 1"),
        (("/wrong", "/health/ready"), "plain vLLM: the server was not ready within 2 s"),
    ],
)
def test_a_server_that_does_not_start(
    paths: tuple[str, str], message: str, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(CommandError, match=message),
        started(fakes.command(paths[0]), fakes.command(paths[1]), 2),
    ):
        pytest.fail("handed over")
    assert not fakes.alive()
    error = capsys.readouterr().err
    assert "the end of the log" in error
    assert ("out of memory" in error) == ("dead" in paths)
    assert len(fakes.lines()) == (2 if paths[0] == "/health" else 1), "started in turn"


PROGRAM = """
import sys, time
from metok_vllm.benchmarks.throughput.servers import LAUNCH, started
code, pids = sys.argv[1:]
commands = [(*LAUNCH, "-c", code, path, pids) for path in ("/health", "/health/ready")]
with started(*commands, 30):
    print("ready", flush=True)
    time.sleep(120)
"""


def test_both_get_the_same_flags_and_metok_its_own(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PLAIN_SERVE", fakes.command("/health"))
    monkeypatch.setattr(servers, "METOK_SERVE", fakes.command("/health/ready"))
    monkeypatch.setattr(servers, "memory_share", lambda flags, number: (f"--share{number}",))
    with servers.pair("model", ["--dtype", "half"], ["--metok-preset", "max"], 30) as pair:
        plain, metok = (psutil.Process(s.process.pid).cmdline() for s in (pair.plain, pair.metok))
        typed_plain, typed_metok = pair.plain_command, pair.metok_command
    common = ["--dtype", "half", "--share2", "--trust-request-mm-kwargs", *servers.REPORT_CACHED]
    of_plain = ["model", *servers.BY_COUNT, *common]
    of_metok = ["model", *common, *servers.WITHOUT_LIMITS, "--metok-preset", "max"]
    assert plain[plain.index("model") : plain.index("--host")] == of_plain
    assert metok[metok.index("model") : metok.index("--host")] == of_metok
    assert typed_plain == ("vllm", "serve", *of_plain)
    assert typed_metok == ("metok", "serve", *of_metok)


@pytest.mark.parametrize("metok_first", [False, True])
def test_plain_vllm_a_second_time_without_its_prefix_cache(
    metok_first: bool, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a flag on the wrong server, a wrong order of starts, and a server left behind."""
    monkeypatch.setattr(servers, "PLAIN_SERVE", fakes.command("/health"))
    monkeypatch.setattr(servers, "METOK_SERVE", fakes.command("/health/ready"))
    monkeypatch.setattr(servers, "memory_share", lambda flags, number: (f"--share{number}",))
    with servers.pair("model", [], [], 30, metok_first=metok_first, uncached=True) as pair:
        assert pair.uncached is not None
        ids = [s.process.pid for s in (pair.plain, pair.uncached, pair.metok)]
        flags = [psutil.Process(pid).cmdline() for pid in ids]
        started_ids = [int(line[1]) for line in fakes.lines()]
    assert ["--no-enable-prefix-caching" in words for words in flags] == [False, True, False]
    assert all("--share3" in words for words in flags)
    assert pair.uncached_command == (*pair.plain_command, "--no-enable-prefix-caching")
    assert started_ids == ([ids[2], *ids[:2]] if metok_first else ids)
    assert not fakes.alive()


def test_a_signal_ends_both(fakes: Fakes) -> None:
    program = begin(fakes)
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 128 + signal.SIGTERM
    assert not fakes.alive()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_killed_benchmark_leaves_no_server(fakes: Fakes) -> None:
    program = begin(fakes)
    program.kill()
    program.wait(30)
    wait_until(lambda: not fakes.alive(), 10)


def begin(fakes: Fakes) -> subprocess.Popen[str]:
    command: Sequence[str] = [sys.executable, "-c", PROGRAM, SERVER, str(fakes.pids)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    assert len(fakes.alive()) == 4
    return program


def test_signals_raise_and_handlers_are_restored() -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with pytest.raises(SystemExit, match=str(128 + number)), servers.ended_by_signals():
            signal.raise_signal(number)
        assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("flags", "number", "there", "share"),
    [
        ([], 2, True, ("--gpu-memory-utilization", "0.45")),
        ([], 3, True, ("--gpu-memory-utilization", "0.30")),
        ([], 2, False, ()),
        (["--gpu_memory_utilization=0.3"], 2, True, ()),
        (["--gpu-memory-utilization", "0.3"], 3, True, ()),
    ],
)
def test_servers_share_a_gpu(
    flags: list[str],
    number: int,
    there: bool,
    share: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert memory_share(flags, number) == share
