"""Ends a process soon after the one that started it has died, whatever it is doing.

vLLM's engine notices the end of its API server only when that ends in good order; after SIGKILL
engine and workers would keep their gigabytes. Shared memory needs no care here: the tracker process
of multiprocessing gives it back once the last of them has ended. The sockets' folder does.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import NoReturn

from metok_vllm.processes import rpc_folder

logger = logging.getLogger("vllm.metok")

# Set by `metok serve` for all its processes.
VARIABLE = "METOK_WATCH_PARENT"
# The time to end in good order. A worker counts from when its engine has used up this much.
GRACE_S = 1.0


def watch_parent() -> bool:
    """Watch the parent of a process that multiprocessing started; False in any other process.

    A signal at the parent's death (PR_SET_PDEATHSIG) would not do: it comes as soon as the thread
    that started the process ends.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return False
    handles = [parent.sentinel]
    try:
        # The sentinel alone stays silent while any other process holds its other end.
        handles.append(os.pidfd_open(parent.pid))
    except ProcessLookupError:
        _end()
    except OSError:
        pass  # not on this kernel
    _start(lambda: wait(handles))
    return True


def watch_socket(descriptor: int) -> None:
    """End this process when the other end of its Unix socket is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is reported without being asked for
    _start(poll.poll)


def _start(wait_for_death: Callable[[], object]) -> None:
    def run() -> None:
        wait_for_death()
        _end()

    threading.Thread(target=run, name="metok-parent-watch", daemon=True).start()


def _end() -> NoReturn:
    logger.warning("The process that started process %d is gone: it ends too.", os.getpid())
    # Nobody will connect to these sockets, and this thread may not outlive the signal.
    rpc_folder.remove()
    # vLLM's handlers close what they can, if the process gets around to it.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
