"""The servers that `metok bench` measures: running ones, or its own pair.

Of two equal servers on a small machine, the one started second was up to 1.46 times as fast,
because memory speed varies (docs/benchmarks.md). On a CPU, plain vLLM is therefore started first
for one half of the rounds and METok for the other half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import bench_options, bench_settings
from metok_vllm.console import CommandError, complain
from metok_vllm.demo import CONFIG_FILE

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import Endpoint


@dataclass(frozen=True)
class Start:
    """A number of rounds on servers that were started in one order."""

    rounds: int
    metok_first: bool = False


Serve = Callable[[Start], AbstractContextManager[Sequence["Endpoint"]]]


def starts(arguments: argparse.Namespace) -> tuple[Start, ...]:
    """The starts of the servers with their rounds; an odd round has plain vLLM first."""
    import torch

    rounds: int = arguments.rounds
    if arguments.base_url is not None or rounds < 2 or torch.cuda.is_available():
        return (Start(rounds),)
    later = rounds // 2
    return (Start(rounds - later), Start(later, metok_first=True))


@contextmanager
def serving(arguments: argparse.Namespace, configuration: dict[str, Any]) -> Iterator[Serve]:
    """Yield a function that provides the servers of a start, the one to compare with first.

    Its own servers end with its context. Their flags are added to `configuration`.
    """
    if arguments.base_url is not None:
        yield lambda start: nullcontext(bench_settings.given_endpoints(arguments))
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
            # The calibrated layers, as in `metok serve --demo`. A file of the user comes later and
            # has priority.
            metok_flags = ["--metok-config", str(CONFIG_FILE), *metok_flags]
        yield partial(_started, arguments, configuration, model, flags, metok_flags)


@contextmanager
def _started(
    arguments: argparse.Namespace,
    configuration: dict[str, Any],
    model: str,
    flags: Sequence[str],
    metok_flags: Sequence[str],
    start: Start,
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
