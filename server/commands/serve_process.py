"""The process of `metok serve`: its environment, its allocator, and the end of its children.

Imports nothing of vLLM, which reads the environment while it is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import logging
import os
import signal
import time
from collections.abc import MutableMapping

import psutil

from metok_vllm.processes import lifetime

logger = logging.getLogger("vllm.metok")

PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
OUR_PLUGINS = ("metok", "metok_http")
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MEDIA_CONNECTOR": "metok",
    "VLLM_VIDEO_LOADER_BACKEND": "metok",
    lifetime.WATCH_VARIABLE: "1",
}
# A constant of glibc's mallopt, and its value.
M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 1 << 20
EXIT_S = 5.0
POLL_S = 0.2


def prepare_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that METok needs; those that the user set stay."""
    for name, value in ENVIRONMENT.items():
        environ.setdefault(name, value)
    environ["VLLM_PLUGINS"] = plugin_list(environ.get("VLLM_PLUGINS"))


def plugin_list(current: str | None) -> str:
    """`VLLM_PLUGINS` with METok's. Unset means all installed plugins, which are then listed."""
    if current is None:
        entries = (importlib.metadata.entry_points(group=group) for group in PLUGIN_GROUPS)
        names = [entry.name for group in entries for entry in group]
    else:
        names = [name for name in current.split(",") if name]
    return ",".join(dict.fromkeys([*names, *OUR_PLUGINS]))


def return_large_blocks() -> bool:
    """Make glibc return blocks over 1 MiB to the system when freed; False without glibc.

    By default glibc raises this threshold after it has freed large blocks, and then keeps them in
    a heap that shrinks only from its end. Request bodies would make that heap grow.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES))


def end_children() -> None:
    """End the processes that this one started, such as idle video decoders, and their sockets."""
    signalled: set[psutil.Process] = set()
    alive = _descendants()
    deadline = time.monotonic() + EXIT_S
    while alive and time.monotonic() < deadline:
        for process in alive - signalled:
            _signal(process, signal.SIGTERM)
        signalled |= alive
        # An engine that is starting may start its workers meanwhile.
        alive = set(psutil.wait_procs(alive, timeout=POLL_S)[1]) | _descendants()
    for process in alive:
        _signal(process, signal.SIGSTOP)  # so that it starts no process before it is killed
    alive |= _descendants()
    for process in alive:
        logger.warning("Process %s did not end on SIGTERM and is killed.", process.pid)
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=EXIT_S)
    lifetime.remove_rpc_folder()


def _descendants() -> set[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return {process for process in found if not _is_resource_tracker(process)}


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # psutil does not signal a new process with the same id.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_resource_tracker(process: psutil.Process) -> bool:
    # It ends by itself, after it has removed this process's shared memory.
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return True
