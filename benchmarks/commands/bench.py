"""`metok bench`: throughput and latency under load, of one server or of two in turn; or, with
`--quality`, what METok's presets do to the answers.

metok bench --checkpoint cpu-reference --frames 8 64 --max-concurrency 1 8
metok bench --base-url http://localhost:8000 --frames 64 --request-rate 0.5
metok bench compare before/result.json after/result.json
metok bench --quality FOLDER --model MODEL --frames 32
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import (
    bench_options,
    bench_quality,
    bench_servers,
    bench_settings,
)
from metok_vllm.console import CommandError, complain, out, write

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import BenchRequest
    from metok_vllm.benchmarks.throughput.gate import Checked
    from metok_vllm.benchmarks.throughput.run import Cell

RESULT, ROWS = "result.json", "rounds.csv"
# Cells of one sweep must not share a text or picture that a server has cached.
SEEDS_APART, STARTS_APART = 1000, 500
ELSEWHERE = "kernel operations are not checked: the server is on another machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok bench`."""
    bench_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, or compare two results. Raises CommandError for what the user can put right."""
    if arguments.action == "compare":
        return _compare(arguments)
    bench_options.check(arguments)
    bench_quality.check(arguments)
    kernels = _check_kernels(arguments)
    if kernels is not None and kernels.refused is not None:
        return _refuse(arguments, kernels)
    if arguments.quality is None:
        return _measure(arguments, kernels)
    found = {"kernels": None if kernels is None else kernels.to_dict()}
    return bench_quality.measure_presets(arguments, _result_folder(arguments), found)


def _check_kernels(arguments: argparse.Namespace) -> Checked | None:
    """What the red gate finds here; None where no server of this machine is measured."""
    from metok_vllm.benchmarks.client.endpoint import is_local
    from metok_vllm.benchmarks.throughput import gate

    if arguments.base_url is not None and not is_local(arguments.base_url):
        complain(ELSEWHERE)
        return None
    return gate.check_operations(gate.engine_device())


def _refuse(arguments: argparse.Namespace, kernels: Checked) -> int:
    """Nothing is measured with an operation that is wrong: no figure of it can be believed."""
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.quality import records as of_quality
    from metok_vllm.benchmarks.throughput import records

    configuration = bench_settings.recorded(arguments)
    result = records.result([], [], environment(), configuration, kernels)
    if arguments.quality is not None:
        result |= {"benchmark": of_quality.BENCHMARK, "schema": of_quality.SCHEMA, "rows": []}
    folder = _result_folder(arguments)
    _save(folder, result, [])
    complain(f"nothing is measured: {kernels.refused}")
    out().print(f"In {folder}: {RESULT}", markup=False)
    write(records.one_line(result) + "\n")
    return 1


def _measure(arguments: argparse.Namespace, kernels: Checked | None) -> int:
    from metok_vllm.benchmarks.client.endpoint import EndpointError
    from metok_vllm.benchmarks.client.workloads import workload
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.throughput import accuracy, records
    from metok_vllm.benchmarks.throughput.load import WarmUpError
    from metok_vllm.benchmarks.throughput.progress import LiveProgress
    from metok_vllm.benchmarks.throughput.run import experiment, gather

    sweep, settings = bench_settings.sweep(arguments), bench_settings.workload_settings(arguments)
    folder = _result_folder(arguments)
    configuration = bench_settings.recorded(arguments)
    facts = environment()
    cells: list[Cell] = []
    quality: list[accuracy.Quality] = []

    def requests(start: int, frames: int) -> Iterator[BenchRequest]:
        seed = settings.seed * SEEDS_APART + start * STARTS_APART + frames
        return workload(replace(settings, frames=(frames,), seed=seed))

    def save() -> dict[str, Any]:
        # No ratio while answers that are to stand beside it are not there.
        awaited = accuracy.NOT_YET if questions else None
        found = (configuration, kernels, quality, awaited)
        result = records.result(cells, endpoints, facts, *found)
        _save(folder, result, cells)
        return result

    def load(number: int, rounds: int) -> None:
        take = gather(cells)

        def keep(cell: Cell) -> None:
            take(cell)
            save()

        part, asked = replace(sweep, rounds=rounds), partial(requests, number)
        with LiveProgress() as progress:
            asyncio.run(experiment(endpoints, part, asked, progress, keep))

    def ask() -> None:
        for each in questions:
            complain(f"{each.source}: {len(each.asked)} questions at {each.frames} frames")
            quality.append(asyncio.run(accuracy.ask_all(endpoints, each, arguments.timeout)))

    try:
        with ExitStack() as stack:
            questions = stack.enter_context(bench_quality.questions_beside(arguments))
            serve = stack.enter_context(bench_servers.serving(arguments, configuration))
            starts = bench_servers.starts(arguments)
            for number, start in enumerate(starts):
                with serve(start) as endpoints:
                    save()  # a folder that cannot be written to shows at once
                    load(number, start.rounds)
                    if start is starts[-1]:
                        ask()
                    result = save()
    except (EndpointError, WarmUpError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"a file cannot be read or written: {error}") from error
    bench_quality.warn_untrained(arguments)
    return _show(result, folder)


def _result_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.result_dir or time.strftime("metok-bench-%Y%m%d-%H%M%S"))


def _save(folder: Path, result: dict[str, Any], cells: Sequence[Cell]) -> None:
    """What is measured so far, so that it outlives a later failure."""
    from metok_vllm.benchmarks.throughput import records

    try:
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / RESULT, result)
        records.write_csv(folder / ROWS, cells)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from error


def _show(result: dict[str, Any], folder: Path) -> int:
    from metok_vllm.benchmarks.throughput.charts import NoMatplotlib, draw_charts
    from metok_vllm.benchmarks.throughput.records import one_line
    from metok_vllm.benchmarks.throughput.tables import failures, tables

    console = out()
    for table in tables(result):
        console.print(table)
    lost = failures(result)
    for line in lost:
        complain(line)
    names = [RESULT, ROWS]
    try:
        names += [path.name for path in draw_charts(result, folder)]
    except NoMatplotlib as error:
        complain(f"no charts: {error}")
    console.print(f"In {folder}: {', '.join(names)}", markup=False)
    write(one_line(result) + "\n")
    return 1 if lost else 0


def _compare(arguments: argparse.Namespace) -> int:
    from metok_vllm.benchmarks.throughput.compare import (
        comparison_table,
        differences,
        read_result,
        rows,
    )

    one, other = (read_result(Path(path)) for path in arguments.results)
    found = rows(one, other)
    if not found:
        raise CommandError("the two results have no length, load and server in common")
    console = out()
    for line in differences(one, other):
        console.print(f"differs: {line}", markup=False)
    console.print(comparison_table(found))
    return 0
