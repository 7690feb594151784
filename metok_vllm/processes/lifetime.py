"""Nothing of a server outlives it: child processes exit, and its socket folder is removed.

vLLM's engine notices the end of its API server only after an orderly exit. After SIGKILL, engine
and workers would keep their memory, and their sockets would stay in the temporary folder. Shared
memory needs no care here: multiprocessing's tracker process frees it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, MutableMapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger("vllm.metok")

# Set by `metok serve` for all its processes.
WATCH_VARIABLE = "METOK_WATCH_PARENT"
# Time for an orderly exit. Workers start to count when their engine has exited.
GRACE_S = 1.0
RPC_VARIABLE = "VLLM_RPC_BASE_PATH"
RPC_PREFIX = "metok-rpc-"


def make_rpc_folder(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make a folder for vLLM's sockets between processes, unless the user set one."""
    if not environ.get(RPC_VARIABLE):
        environ[RPC_VARIABLE] = tempfile.mkdtemp(prefix=RPC_PREFIX)


def remove_rpc_folder(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove the folder if `make_rpc_folder` made it; idempotent, from any process."""
    folder = Path(environ.get(RPC_VARIABLE, ""))
    if folder.name.startswith(RPC_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def watch_parent() -> bool:
    """Exit soon after the parent of this multiprocessing child; False in any other process.

    PR_SET_PDEATHSIG does not serve: it fires when the thread that started the process ends.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return False
    handles = [parent.sentinel]
    try:
        # The sentinel does not fire while another process holds its other end.
        handles.append(os.pidfd_open(parent.pid))
    except ProcessLookupError:
        _exit()
    except OSError:
        pass  # not supported by this kernel
    _exit_after(lambda: wait(handles))
    return True


def watch_socket(descriptor: int) -> None:
    """Exit when the other end of the Unix socket `descriptor` is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hang-ups are always reported
    _exit_after(poll.poll)


def _exit_after(wait_for_end: Callable[[], object]) -> None:
    def run() -> None:
        wait_for_end()
        _exit()

    threading.Thread(target=run, name="metok-parent-watch", daemon=True).start()


def _exit() -> NoReturn:
    logger.warning("Process %d exits because its parent process has exited.", os.getpid())
    # First, because this thread may not survive the signal.
    remove_rpc_folder()
    # vLLM's handlers clean up if the process runs them in time.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
