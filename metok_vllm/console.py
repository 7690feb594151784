"""Output of the commands: answers and tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

# Of tables where no terminal sets a width, so that no cell is cut.
PIPE_COLUMNS = 400
# Between two lines of progress where stderr is no terminal.
LINE_S = 10.0


class CommandError(Exception):
    """Ends a command with one line on stderr and an exit status, without a traceback.

    Status 1: the work failed (no server, an error of the server). 2: the command line is wrong.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def out() -> Console:
    """Standard output. Made per call, so that redirections are respected."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    width = None if "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(highlight=False, soft_wrap=True, width=width)


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


@contextmanager
def progress(line_s: float = LINE_S) -> Iterator[Callable[[str], None]]:
    """A function that shows what a long command is doing, on stderr.

    On a terminal the text is a status line; elsewhere it is a line at most every `line_s` seconds.
    """
    console = err()
    if not console.is_terminal:
        yield _lines(line_s)
        return
    with console.status("starting") as status:
        yield lambda text: status.update(text)


def _lines(line_s: float) -> Callable[[str], None]:
    last_s = -math.inf

    def show(text: str) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= line_s:
            last_s = now_s
            complain(text)

    return show
