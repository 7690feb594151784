"""The questions of `metok bench`: accuracy after a load, or presets in place of a load."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import bench_options, bench_settings
from metok_vllm.console import CommandError, complain

if TYPE_CHECKING:
    from metok_vllm.benchmarks.quality.source import Source
    from metok_vllm.benchmarks.throughput.accuracy import QuestionSet

UNTRAINED = "the weights are untrained: agreement shows only that two engines compute the same"


def check(arguments: argparse.Namespace) -> None:
    """Raises CommandError (status 2) for options about questions that do not fit together."""
    a = arguments
    count = a.quality_questions
    if count is not None and count < 0:
        raise CommandError(f"--quality-questions must be 0 or more, got {count}", 2)
    if a.quality is not None and (count is not None or a.quality_folder is not None):
        raise CommandError(
            "--quality replaces the load: no --quality-questions and no --quality-folder", 2
        )
    if count and a.quality_folder is None and a.checkpoint != bench_options.DEMO:
        raise CommandError(
            "--quality-questions goes with --checkpoint demo or with --quality-folder", 2
        )


@contextmanager
def questions_after_load(arguments: argparse.Namespace) -> Iterator[list[QuestionSet]]:
    """The questions for after the rounds: a set for each number of frames, or none.

    Raises ConfigError for an unusable folder.
    """
    from metok_vllm.benchmarks.throughput import accuracy

    a = arguments
    count = accuracy.QUESTIONS if a.quality_questions is None else a.quality_questions
    if count and a.quality_folder is not None:
        frames = dict.fromkeys(a.frames)
        yield [accuracy.of_folder(a.quality_folder, number, count) for number in frames]
    elif count and a.checkpoint == bench_options.DEMO:
        with accuracy.event_qa(a.frames, count, a.seed) as drawn:
            yield drawn
    else:
        yield []


def measure_presets(arguments: argparse.Namespace, out: Path, kernels: Mapping[str, Any]) -> int:
    """`--quality`: compare the answers under METok's presets. `kernels` goes into the record."""
    from metok_vllm.benchmarks.client.endpoint import EndpointError
    from metok_vllm.benchmarks.quality.command import Plan, read_cells, run
    from metok_vllm.benchmarks.quality.harness import CONCURRENCY
    from metok_vllm.benchmarks.quality.source import opened
    from metok_vllm.benchmarks.questions.settings import for_server, presets

    source = _source(arguments)
    source.check_frames(arguments.frames)
    settings = for_server(presets(arguments.presets), source.config(), source.has_own_config)
    cells = read_cells([arguments.quality], arguments.frames, lambda _: settings)
    warn_untrained(arguments)
    try:
        with opened(source) as (serve, geometry):
            plan = Plan(
                cells,
                out,
                geometry,
                (arguments.max_concurrency or [CONCURRENCY])[0],
                bench_settings.output_len(arguments),
                arguments.seed,
                {**bench_settings.recorded(arguments), **kernels},
                as_json=arguments.json,
            )
            return run(plan, serve)
    except EndpointError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"a file cannot be read or written: {error}") from error


def warn_untrained(arguments: argparse.Namespace) -> None:
    """Warn that answers of an untrained checkpoint are meaningless."""
    if arguments.checkpoint not in (None, bench_options.DEMO):
        complain(UNTRAINED)


def _source(arguments: argparse.Namespace) -> Source:
    """Where the answers of `--quality` come from."""
    from metok_vllm.benchmarks.quality.source import Source

    a, is_running = arguments, arguments.base_url is not None
    flags, metok_flags = bench_settings.server_flags(a)
    return Source(
        base_url=a.base_url,
        checkpoint=a.checkpoint,
        model=None if is_running else a.model,
        name=a.model if is_running else None,
        flags=flags,
        metok_flags=metok_flags,
        headers=bench_settings.headers_of(a),
    )
