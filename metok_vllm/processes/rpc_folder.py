"""A folder for the sockets between a server's processes, which is removed with the server.

vLLM puts them into the temporary folder, where those of killed processes stay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "VLLM_RPC_BASE_PATH"
PREFIX = "metok-rpc-"


def make(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make a folder and have vLLM use it, unless the user named one."""
    if not environ.get(VARIABLE):
        environ[VARIABLE] = tempfile.mkdtemp(prefix=PREFIX)


def remove(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove the folder if it is one of ours, from any process of the server; idempotent."""
    folder = Path(environ.get(VARIABLE, ""))
    if folder.name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
