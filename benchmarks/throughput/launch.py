"""Runs a server that ends when whoever started it does, even by SIGKILL.

python -m metok_vllm.benchmarks.throughput.launch -m vllm.entrypoints.cli.main serve MODEL
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become `python` with the arguments given."""
    if sys.platform == "linux":
        # Survives exec, which is why this process need not stay.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    # The same for both servers; `metok serve` does so by itself.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
