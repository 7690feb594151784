"""Every example of the README runs as it stands there, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metok_vllm.processes.child_server import ChildServer

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
PYTHON = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
WITH_CLIENT = [block for block in PYTHON if "OpenAI(" in block]
WITH_LLM = [block for block in PYTHON if "LLM(" in block]


def test_nothing_is_left_out() -> None:
    assert len(WITH_CLIENT) == 2
    assert len(WITH_LLM) == 1
    assert len(PYTHON) == 3


def run(code: str, folder: Path, **environ: str) -> str:
    script = folder / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def against(server: ChildServer, code: str, folder: Path) -> str:
    assert "http://localhost:8000" in code
    return run(code.replace("http://localhost:8000", server.url), folder)


def test_a_plain_answer(server: ChildServer, tmp_path: Path) -> None:
    printed = against(server, WITH_CLIENT[0], tmp_path)
    assert "'dense': 513, 'encoded':" in printed
    assert printed.count("'start_s':") == 6


def test_a_streamed_answer(server: ChildServer, tmp_path: Path) -> None:
    printed = against(server, WITH_CLIENT[1], tmp_path)
    assert "'dense': 513, 'encoded': 513" in printed
    assert "'dense': 513, 'encoded': 400" in printed


@pytest.mark.thorough
def test_without_our_server(tmp_path: Path) -> None:
    printed = run(WITH_LLM[0], tmp_path, VLLM_CPU_KVCACHE_SPACE="1")
    (count,) = re.findall(r"^(\d+) prompt tokens: ", printed, re.MULTILINE)
    # 346 visual tokens and the text around them; dense would be 513.
    assert 346 < int(count) < 400


def test_files_that_the_readme_points_at_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert len(links) > 5
    assert [link for link in links if not (README.parent / link).exists()] == []
