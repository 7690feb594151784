"""Run a server that ends with its parent process, even if the parent is killed.

python -m metok_vllm.benchmarks.throughput.launch -m vllm.entrypoints.cli.main serve MODEL
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# `metok serve` sets the first by itself. With small pages, memory speed varies between processes:
# of two equal servers the one started second answered 1.2 to 1.4 times as many text requests. With
# PyTorch's tensors in huge pages (c10/core/alignment.h) the factor was 1.06.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
# Further variables that select the memory allocator; the servers inherit them.
ALLOCATOR = ("LD_PRELOAD", "GLIBC_TUNABLES")


def environment() -> dict[str, str]:
    """The variables of both servers; the current environment has priority."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}


def recorded() -> dict[str, str]:
    """`environment` and the allocator for the record, with libraries by file name."""
    chosen = {name: os.environ[name] for name in ALLOCATOR if os.environ.get(name)}
    if "LD_PRELOAD" in chosen:
        libraries = chosen["LD_PRELOAD"].replace(" ", ":").split(":")
        chosen["LD_PRELOAD"] = ":".join(os.path.basename(path) for path in libraries)
    return environment() | chosen


def main() -> None:
    """Replace this process by `python` with the given arguments."""
    if sys.platform == "linux":
        # The setting survives exec.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.environ.update(environment())
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
