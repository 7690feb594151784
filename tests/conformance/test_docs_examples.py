"""Every Python example of README.md and docs/ runs as it stands, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metok_vllm.processes.child_server import ChildServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    page.name: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for page in PAGES
}


def test_all_examples_are_run_here() -> None:
    counts = {name: len(blocks) for name, blocks in EXAMPLES.items() if blocks}
    assert counts == {"README.md": 1, "install.md": 1, "settings.md": 1}


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
    printed = against(server, EXAMPLES["README.md"][0], tmp_path)
    assert "'dense': 513, 'encoded':" in printed
    assert printed.count("'start_s':") == 6


def test_a_streamed_answer(server: ChildServer, tmp_path: Path) -> None:
    printed = against(server, EXAMPLES["settings.md"][0], tmp_path)
    assert "'dense': 513, 'encoded': 513" in printed
    assert "'dense': 513, 'encoded': 400" in printed


@pytest.mark.thorough
def test_without_our_server(tmp_path: Path) -> None:
    """The plugin in a plain `vllm.LLM`, whose engine is a process of its own."""
    printed = run(EXAMPLES["install.md"][0], tmp_path, VLLM_CPU_KVCACHE_SPACE="1")
    (count,) = re.findall(r"^(\d+) prompt tokens: ", printed, re.MULTILINE)
    # 400 visual tokens with the demo's own file, and the text around them; dense would be 513.
    assert 400 < int(count) < 450
