"""The process of `metok serve`: its environment and its allocator."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from metok_vllm.server.commands.serve_process import plugin_list, prepare_environment


def test_unset_means_every_plugin_and_that_stays_so() -> None:
    names = plugin_list(None).split(",")
    general = {e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")}
    assert {*general, "metok", "metok_http"} <= set(names)
    assert len(names) == len(set(names))


def test_the_user_s_choice_is_kept_and_ours_added() -> None:
    assert plugin_list("mine") == "mine,metok,metok_http"
    assert plugin_list("") == "metok,metok_http"
    assert plugin_list("metok_http,metok") == "metok_http,metok"


def test_variables_of_the_user_stay() -> None:
    environ = {"VLLM_MEDIA_CONNECTOR": "http", "VLLM_NO_USAGE_STATS": "0"}
    prepare_environment(environ)
    assert environ["VLLM_MEDIA_CONNECTOR"] == "http"
    assert environ["VLLM_NO_USAGE_STATS"] == "0"
    assert environ["VLLM_VIDEO_LOADER_BACKEND"] == "metok"
    assert "metok_http" in environ["VLLM_PLUGINS"].split(",")


PROGRAM = """
import sys
import psutil
from metok_vllm.server.commands.serve_process import return_large_blocks

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
