"""Large blocks go back to the system, in a process of its own: the setting lasts."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import psutil
from metok_vllm.server.allocator import return_large_blocks

def freed_bytes(size, count):
    process = psutil.Process()
    blocks = [bytes(b"x" * size) for _ in range(count)]
    marks = []
    for index in range(count):  # something small that stays, behind each of them
        marks.append(bytes(70_000))
        blocks[index] = bytes(b"y" * size)
    held = process.memory_info().rss
    del blocks
    return held - process.memory_info().rss, marks

if sys.argv[1] == "on":
    assert return_large_blocks()

freed_bytes(24 << 20, 2)
print(freed_bytes(4 << 20, 40)[0] / (160 << 20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own setting")
def test_large_blocks_are_returned() -> None:
    command = [sys.executable, "-c", PROGRAM, "on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9
