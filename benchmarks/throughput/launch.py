"""Runs a server that ends when whoever started it does, even by SIGKILL.

python -m metok_vllm.benchmarks.throughput.launch -m vllm.entrypoints.cli.main serve MODEL
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# `metok serve` sets the first by itself. In small pages a process's memory is as fast as what it
# happened to get: of two plain servers the one started second answered 1.2 to 1.4 times as many
# text requests. With PyTorch's tensors in huge pages (c10/core/alignment.h) it was 1.06 times.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
# What else decides where a process gets its memory from, passed on where the user has set it.
ALLOCATOR = ("LD_PRELOAD", "GLIBC_TUNABLES")


def environment() -> dict[str, str]:
    """What both servers are given, unless the environment says otherwise."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}


def recorded() -> dict[str, str]:
    """`environment` and the allocator, for a result: libraries by name, not where they lie."""
    chosen = {name: os.environ[name] for name in ALLOCATOR if os.environ.get(name)}
    if "LD_PRELOAD" in chosen:
        libraries = chosen["LD_PRELOAD"].replace(" ", ":").split(":")
        chosen["LD_PRELOAD"] = ":".join(os.path.basename(path) for path in libraries)
    return environment() | chosen


def main() -> None:
    """Become `python` with the arguments given."""
    if sys.platform == "linux":
        # Survives exec, which is why this process need not stay.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.environ.update(environment())
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
