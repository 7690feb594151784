"""Output of the commands: answers and tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


class CommandError(Exception):
    """Ends a command with one line on stderr and an exit status, without a traceback.

    Status 1: the work failed (no server, an error of the server). 2: the command line is wrong.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def out() -> Console:
    """Standard output. Made per call, so that redirections are respected."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Standard error. Progress bars draw here, and only on a terminal."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def write(text: str) -> None:
    """Write text to stdout and flush; streamed answers and JSON must not be wrapped or styled."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """One JSON document on stdout."""
    write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def complain(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"metok: {message}\n")
