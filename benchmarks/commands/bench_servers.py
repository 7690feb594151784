"""The servers that `metok bench` measures: running ones, or a pair of its own, started in turn.

Of two equal servers the one started second was up to 1.46 times as fast on a small machine: memory
is not the same everywhere (docs/benchmarks.md, "Start order"). So on a CPU one half of
the rounds is run on servers of which plain vLLM was started first, the other half on servers of
which METok was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import bench_options, bench_settings
from metok_vllm.console import CommandError, complain
from metok_vllm.demo import CONFIG_FILE

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import Endpoint


@dataclass(frozen=True)
class Start:
    """So many rounds on servers that were started in one order."""

    rounds: int
    metok_first: bool = False


Serve = Callable[[Start], AbstractContextManager[Sequence["Endpoint"]]]


def starts(arguments: argparse.Namespace) -> tuple[Start, ...]:
    """How the rounds are shared out; where there is an odd one, plain vLLM was started first."""
    import torch

    rounds: int = arguments.rounds
    if arguments.base_url is not None or rounds < 2 or torch.cuda.is_available():
        return (Start(rounds),)
    later = rounds // 2
    return (Start(rounds - later), Start(later, metok_first=True))


@contextmanager
def serving(arguments: argparse.Namespace, configuration: dict[str, Any]) -> Iterator[Serve]:
    """What gives the servers to measure, the one to compare with first.

    Ours end with the context that it returns. `configuration` is told what they are.
    """
    if arguments.base_url is not None:
        yield lambda start: _given(arguments)
        return
    try:
        from metok_vllm.benchmarks.throughput import checkpoints, launch
    except ModuleNotFoundError as error:
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error
    flags, metok_flags = bench_settings.server_flags(arguments)
    configuration["servers_environment"] = launch.recorded()
    configuration["servers_started"] = [
        {"rounds": start.rounds, "first": "metok" if start.metok_first else "plain"}
        for start in starts(arguments)
    ]
    with ExitStack() as stack:
        model = arguments.model
        if arguments.checkpoint is not None:
            made = stack.enter_context(checkpoints.checkpoint(arguments.checkpoint))
            model, flags = made.model, [*made.flags, *flags]
            metok_flags = [*made.metok_flags, *metok_flags]
        if arguments.checkpoint == bench_options.DEMO:
            # The layers it was calibrated with, as `metok serve --demo`; a file of the user's own
            # comes later and wins.
            metok_flags = ["--metok-config", str(CONFIG_FILE), *metok_flags]
        # Requests say how many frames are to be sampled; plain vLLM takes that on trust only.
        flags = ["--trust-request-mm-kwargs", *flags]
        yield lambda start: _started(arguments, configuration, start, model, flags, metok_flags)


@contextmanager
def _given(arguments: argparse.Namespace) -> Iterator[Sequence[Endpoint]]:
    yield bench_settings.given_endpoints(arguments)


@contextmanager
def _started(
    arguments: argparse.Namespace,
    configuration: dict[str, Any],
    start: Start,
    model: str,
    flags: Sequence[str],
    metok_flags: Sequence[str],
) -> Iterator[Sequence[Endpoint]]:
    from metok_vllm.benchmarks.client.endpoint import find_endpoint
    from metok_vllm.benchmarks.throughput import servers

    complain(f"starting both servers, {'METok' if start.metok_first else 'plain vLLM'} first")
    pair = servers.pair(model, flags, metok_flags, metok_first=start.metok_first)
    with pair as both:
        commands = {"plain": both.plain_command, "metok": both.metok_command}
        configuration["servers"] = {
            name: bench_settings.without_places(command, model)
            for name, command in commands.items()
        }
        yield [
            find_endpoint(name, child.url, extra_body=body, pid=child.process.pid)
            for name, child, body in (
                ("plain", both.plain, arguments.baseline_extra_body),
                ("metok", both.metok, arguments.extra_body),
            )
        ]
