"""CPU seconds of a process tree by role."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from metok_vllm.benchmarks.client.processes import HostMeter, HostUse

# A root whose child uses a given CPU time and then prints a line.
BURN = """
import sys, time
end = time.process_time() + float(sys.argv[1])
while time.process_time() < end:
    pass
print("burnt", flush=True)
sys.stdin.read()
"""
ROOT = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1], sys.argv[2], "VLLM::EngineCore"], stdin=subprocess.PIPE,
)
sys.stdin.read()
child.kill()
child.wait()
"""


def test_a_childs_time_counts_under_its_role() -> None:
    command = [sys.executable, "-c", ROOT, BURN, "0.4"]

    async def run(root: subprocess.Popen[bytes]) -> HostUse | None:
        async with HostMeter(root.pid, every_s=0.05) as meter:
            assert root.stdout is not None
            await asyncio.to_thread(root.stdout.readline)
        return meter.use()

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as root:
        use = asyncio.run(run(root))
        root.communicate()
    assert use is not None
    # The clock of a process ticks in hundredths; the interpreter's start takes time of its own.
    assert 0.38 <= use.cpu_s["engine core"] < 1.0
    assert use.cores == pytest.approx(sum(use.cpu_s.values()) / use.wall_s)
    assert use.peak_rss > 1 << 20


def test_what_was_used_before_does_not_count() -> None:
    async def run() -> HostUse | None:
        async with HostMeter(os.getpid(), every_s=10) as meter:
            pass
        return meter.use()

    before = psutil.Process().cpu_times()
    use = asyncio.run(run())
    assert use is not None
    assert before.user > 0.1
    assert use.cpu_s["API server"] < 0.1


def test_no_process_no_figures() -> None:
    async def run(pid: int | None) -> HostUse | None:
        async with HostMeter(pid) as meter:
            pass
        return meter.use()

    assert asyncio.run(run(None)) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert asyncio.run(run(ended.pid)) is None
