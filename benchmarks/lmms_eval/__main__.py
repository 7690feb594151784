"""Check lmms-eval's environment and repair what can be repaired.

    lmms/bin/python -m metok_vllm.benchmarks.lmms_eval

Run it with the Python of that environment. docs/evaluation.md lists what is checked.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

TESTED = "0.7.3"
TASK = Path(__file__).parent / "task"
# Python runs the lines of .pth files at its start; without metok_vllm this one does nothing.
STARTUP_FILE = Path(sysconfig.get_path("purelib")) / "metok_startup.pth"
STARTUP_LINE = (
    'import importlib.util; importlib.util.find_spec("metok_vllm") '
    'and __import__("metok_vllm.startup")\n'
)


def main() -> int:
    """Print what is found. Returns 0 if lmms-eval can run the model `metok`, else 1."""
    version = _version("lmms-eval")
    if version is None:
        print(f'lmms-eval is not installed here: pip install "lmms-eval=={TESTED}"')
        return 1
    print(f"lmms-eval {version}" + ("" if version == TESTED else f", tested with {TESTED}"))
    problems = []
    if _imports("torchvision") is not None:
        # PyTorch's compiled operators are not needed, only their declarations.
        STARTUP_FILE.write_text(STARTUP_LINE, encoding="utf-8")
        problems += _problem("torchvision", "install it from PyTorch's index, as torch was")
        print("torchvision was built for another torch: repaired when Python starts")
    problems += _problem("filelock._api", 'pip install "filelock<4"')
    problems += _problem("metok_vllm.benchmarks.lmms_eval.model", "the line above tells why")
    for line in problems:
        print(line)
    print(f"tasks: --include_path {TASK}")
    return 1 if problems else 0


def _problem(module: str, repair: str) -> list[str]:
    error = _imports(module)
    return [] if error is None else [f"{module} cannot be imported: {error}", f"  {repair}"]


def _imports(module: str) -> str | None:
    """The last line of the error of an import in a new process; None if it succeeds."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
