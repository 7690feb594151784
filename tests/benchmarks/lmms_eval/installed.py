"""lmms-eval in an environment of its own, made by the command lines of docs/evaluation.md.

It is kept in the user's cache folder under a name that depends on these lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
ENVIRONMENT = "lmms/bin/"
INSTALL_S = 900


def shell_blocks(heading: str) -> list[str]:
    """The shell commands below a heading of the page."""
    section = re.split(rf"^## {heading}$", PAGE, flags=re.M)[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.S)


INSTALL = shell_blocks("Install")[0].splitlines()
PLUGIN_LINE = INSTALL.index(f"{ENVIRONMENT}pip install --no-deps .")


@dataclass(frozen=True)
class Lmms:
    """The folder of the environment's programs, and the folder with this project beside it."""

    programs: Path
    plugin: Path

    def run(self, script: str, folder: Path, status: int = 0) -> str:
        """Run lines of the page in a folder and return what they print."""
        script = script.replace(ENVIRONMENT, f"{self.programs}/")
        here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(self.plugin), "PATH": here},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_S,
        )
        assert done.returncode == status, done.stdout[-3000:]
        return done.stdout


def install(folder: Path) -> Lmms:
    """The environment, made where the cache has none. Skips the test where PyPI is unreachable."""
    lines = INSTALL[:PLUGIN_LINE]
    key = hashlib.sha256("\n".join([*lines, sys.version]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    home = cache / "metok-vllm-tests" / f"lmms-eval-{key}"
    made = Lmms(home / ENVIRONMENT, _plugin(folder))
    complete = home / "complete"
    home.parent.mkdir(parents=True, exist_ok=True)
    # Another test run may be making it.
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            _require_pypi()
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            # The Python of these tests, which may not be the first in PATH.
            first = lines[0].replace("python3", sys.executable)
            made.run("\n".join([first, *lines[1:]]), home)
            complete.touch()
    return made


def _require_pypi() -> None:
    pip = (sys.executable, "-m", "pip", "index", "versions", "lmms-eval", "--timeout", "20")
    if subprocess.run(pip, capture_output=True).returncode != 0:
        pytest.skip("lmms-eval is not installed in the cache and PyPI cannot be reached")


def _plugin(folder: Path) -> Path:
    """This project without its dependencies, from a copy, so that the checkout stays clean."""
    source, target = folder / "source", folder / "plugin"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "results", "demo")
    for name in ("metok_vllm", "kernels", "server", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target
