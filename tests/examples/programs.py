"""The programs of examples/, run as a reader of them would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(
    name: str, *arguments: str, stdin: str = "", status: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The finished program; the test fails if its exit status is another."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done
