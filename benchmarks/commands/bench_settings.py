"""Loads, workload, servers and record of a run, from the options of `metok bench`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands.bench_options import (
    HEIGHT,
    OUTPUT_LEN,
    QUALITY_OUTPUT_LEN,
    WIDTH,
)
from metok_vllm.console import CommandError

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import Endpoint
    from metok_vllm.benchmarks.client.workloads import WorkloadSettings
    from metok_vllm.benchmarks.throughput.run import Sweep

# Header values may be secrets; the others do not affect any figure.
NOT_RECORDED = ("header", "result_dir", "action", "command", "server_pid", "json")


def sweep(arguments: argparse.Namespace) -> Sweep:
    """Every concurrency at every rate; 1 and 8 in flight without either.

    Raises CommandError (status 2) for an invalid load.
    """
    from metok_vllm.benchmarks.throughput.load import Load
    from metok_vllm.benchmarks.throughput.run import Sweep

    a = arguments
    rates: Sequence[float] = a.request_rate or [math.inf]
    # With a rate alone, the number of requests in flight is unbounded.
    slots: Sequence[int | None] = a.max_concurrency or ([None] if a.request_rate else [1, 8])
    try:
        loads = tuple(Load(slot, rate, a.seed, a.timeout) for slot in slots for rate in rates)
    except ValueError as error:
        raise CommandError(str(error), 2) from error
    return Sweep(tuple(a.frames), loads, a.num_prompts, a.num_warmups, a.rounds)


def workload_settings(arguments: argparse.Namespace) -> WorkloadSettings:
    """The settings of the workload. Raises ConfigError for invalid ones."""
    from metok_vllm.benchmarks.client.workloads import WorkloadSettings

    a = arguments
    width, height = a.video_size or (WIDTH, HEIGHT)
    return WorkloadSettings(
        seed=a.seed,
        clips=tuple(a.clips),
        folder=a.video_dir,
        frames=tuple(a.frames),
        questions_per_video=a.questions_per_video,
        videos_in_turn=a.videos_in_turn,
        turns=a.turns,
        reuse_share=a.reuse_share,
        reuse_pool=a.reuse_pool,
        text_share=a.text_share,
        image_share=a.image_share,
        max_tokens=output_len(a),
        width=width,
        height=height,
        video_fps=a.video_fps,
    )


def given_endpoints(arguments: argparse.Namespace) -> list[Endpoint]:
    """The running servers: one, or two with a baseline."""
    from metok_vllm.benchmarks.client.endpoint import find_endpoint

    a = arguments
    headers = headers_of(a)
    found = []
    if a.baseline_url is not None or a.baseline_extra_body is not None:
        url, body = a.baseline_url or a.base_url, a.baseline_extra_body
        model = a.model if a.baseline_url is None else None
        found.append(find_endpoint("baseline", url, model=model, extra_body=body, headers=headers))
    server = find_endpoint(
        "server",
        a.base_url,
        model=a.model,
        extra_body=a.extra_body,
        headers=headers,
        pid=a.server_pid,
    )
    return [*found, server]


def output_len(arguments: argparse.Namespace) -> int:
    """The number of tokens of an answer."""
    if arguments.output_len is not None:
        return int(arguments.output_len)
    return OUTPUT_LEN if arguments.quality is None else QUALITY_OUTPUT_LEN


def server_flags(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Flags for both servers, and for METok's alone."""
    try:
        return shlex.split(arguments.server_flags), shlex.split(arguments.metok_flags)
    except ValueError as error:
        raise CommandError(f"flags that cannot be split into words: {error}", 2) from error


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options for the result file, without secrets and paths."""
    options = {key: v for key, v in vars(arguments).items() if key not in NOT_RECORDED}
    options["output_len"] = output_len(arguments)
    options["header"] = [header.partition("=")[0] for header in arguments.header]
    return {
        key: value.name if isinstance(value, Path) else value for key, value in options.items()
    } | {"request_rate": [str(rate) for rate in arguments.request_rate or [math.inf]]}


def without_places(command: Sequence[str], model: str) -> list[str]:
    """A server's command from its model on, with local paths reduced to their last part."""
    flags = command[list(command).index(model) :]
    return [Path(f).name if os.sep in f and Path(f).exists() else f for f in flags]


def headers_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The headers of every request."""
    return dict(header.split("=", 1) for header in arguments.header)
