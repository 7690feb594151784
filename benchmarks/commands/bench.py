"""`metok bench`: throughput and latency of one server or of several in turn under load.

    metok bench --checkpoint cpu-reference --frames 8 64 --max-concurrency 1 8
    metok bench --base-url http://localhost:8000 --frames 64 --request-rate 0.5
    metok bench compare before/result.json after/result.json

With `--quality` it measures the answers under METok's presets in place of speed:

    metok bench --quality FOLDER --model MODEL --frames 32
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import (
    bench_options,
    bench_quality,
    bench_servers,
    bench_settings,
)
from metok_vllm.console import CommandError, complain, err, out, write

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
    from metok_vllm.benchmarks.client.workloads import WorkloadSettings
    from metok_vllm.benchmarks.throughput.accuracy import Quality, QuestionSet
    from metok_vllm.benchmarks.throughput.gate import Checked
    from metok_vllm.benchmarks.throughput.run import Cell

RESULT, ROWS = "result.json", "rounds.csv"
# Seeds differ by start and by frames, so that no cell repeats a text or picture of another.
SEEDS_APART, STARTS_APART = 1000, 500
NOT_LOCAL = "kernel operations are not checked: the server is on another machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok bench`."""
    bench_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, or compare two results. Raises CommandError for a mistake of the user."""
    if arguments.action == "compare":
        return _compare(arguments)
    bench_options.check(arguments)
    bench_quality.check(arguments)
    kernels = _check_kernels(arguments)
    if kernels is not None and kernels.refused is not None:
        return _refuse(arguments, kernels)
    if arguments.quality is None:
        return _measure(arguments, kernels)
    checked = {"kernels": None if kernels is None else asdict(kernels)}
    return bench_quality.measure_presets(arguments, _result_folder(arguments), checked)


def _check_kernels(arguments: argparse.Namespace) -> Checked | None:
    """The result of the kernel gate; None if no server of this machine is measured."""
    from metok_vllm.benchmarks.client.endpoint import is_local
    from metok_vllm.benchmarks.throughput import gate

    if arguments.base_url is not None and not is_local(arguments.base_url):
        complain(NOT_LOCAL)
        return None
    return gate.check_operations(gate.engine_device())


def _refuse(arguments: argparse.Namespace, kernels: Checked) -> int:
    """Write a result without figures, since a wrong kernel makes all of them meaningless."""
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.quality import records as quality_records
    from metok_vllm.benchmarks.throughput import records

    configuration = bench_settings.recorded(arguments)
    result = records.result([], [], environment(), configuration, kernels)
    if arguments.quality is not None:
        result |= {"benchmark": quality_records.BENCHMARK, "schema": quality_records.SCHEMA}
        result |= {"rows": []}
    folder = _result_folder(arguments)
    _save(folder, result, [])
    complain(f"nothing is measured: {kernels.refused}")
    if arguments.json:
        write(records.one_line(result) + "\n")
    complain(f"in {folder}: {RESULT}")
    return 1


@dataclass
class _Measurement:
    """A run of `metok bench`: its configuration and the results so far."""

    arguments: argparse.Namespace
    folder: Path
    configuration: dict[str, Any]
    environment: Mapping[str, Any]
    kernels: Checked | None
    questions: list[QuestionSet]
    cells: list[Cell] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)

    async def load(self, endpoints: Sequence[Endpoint], number: int, rounds: int) -> None:
        """Measure all cells on the servers of start `number`, and save after every cell."""
        from metok_vllm.benchmarks.throughput.progress import LiveProgress
        from metok_vllm.benchmarks.throughput.run import experiment

        sweep = replace(bench_settings.sweep(self.arguments), rounds=rounds)
        requests = partial(_requests, bench_settings.workload_settings(self.arguments), number)
        place = 0
        with LiveProgress() as progress:
            async for cell in experiment(endpoints, sweep, requests, progress):
                # Every start measures the same cells and adds its rounds to them.
                if place < len(self.cells):
                    self.cells[place].rounds.extend(cell.rounds)
                else:
                    self.cells.append(cell)
                place += 1
                self.save(endpoints)

    async def send_questions(self, endpoints: Sequence[Endpoint]) -> None:
        """Measure the accuracy of the servers."""
        from metok_vllm.benchmarks.throughput.accuracy import measure_quality

        asked = bench_servers.with_other_answers(endpoints)
        for each in self.questions:
            complain(f"{each.source}: {len(each.questions)} questions at {each.frames} frames")
            found = await measure_quality(asked, each, self.arguments.timeout)
            self.quality.append(found)

    def save(self, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
        """Write the results so far and return their JSON."""
        from metok_vllm.benchmarks.throughput import accuracy, records

        result = records.result(
            self.cells,
            endpoints,
            self.environment,
            self.configuration,
            self.kernels,
            self.quality,
            pending=accuracy.PENDING if self.questions else None,
        )
        _save(self.folder, result, self.cells)
        return result


def _requests(settings: WorkloadSettings, start: int, frames: int) -> Iterator[BenchRequest]:
    """The endless requests of one start for a number of frames."""
    from metok_vllm.benchmarks.client.workloads import workload

    seed = settings.seed * SEEDS_APART + start * STARTS_APART + frames
    return workload(replace(settings, frames=(frames,), seed=seed))


def _measure(arguments: argparse.Namespace, kernels: Checked | None) -> int:
    from metok_vllm.benchmarks.client.endpoint import EndpointError, require_aiohttp
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.throughput.load import WarmUpError

    # Invalid options fail before a server starts.
    bench_settings.sweep(arguments)
    bench_settings.workload_settings(arguments)
    folder = _result_folder(arguments)
    configuration = bench_settings.recorded(arguments)
    try:
        require_aiohttp()
        with ExitStack() as stack:
            questions = stack.enter_context(bench_quality.questions_after_load(arguments))
            serve = stack.enter_context(bench_servers.serving(arguments, configuration))
            measurement = _Measurement(
                arguments, folder, configuration, environment(), kernels, questions
            )
            starts = bench_servers.starts(arguments)
            for number, start in enumerate(starts):
                with serve(start) as endpoints:
                    measurement.save(endpoints)  # fails early for a read-only folder
                    asyncio.run(measurement.load(endpoints, number, start.rounds))
                    if start is starts[-1]:
                        asyncio.run(measurement.send_questions(endpoints))
                    result = measurement.save(endpoints)
    except (EndpointError, WarmUpError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"a file cannot be read or written: {error}") from error
    bench_quality.warn_untrained(arguments)
    return _show(result, folder, arguments.json)


def _result_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.result_dir or time.strftime("metok-bench-%Y%m%d-%H%M%S"))


def _save(folder: Path, result: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Write the results so far, which a later failure does not remove."""
    from metok_vllm.benchmarks.throughput import records

    try:
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / RESULT, result)
        records.write_csv(folder / ROWS, cells)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from error


def _show(result: dict[str, Any], folder: Path, as_json: bool) -> int:
    """Print tables, or a line of JSON, and draw charts. Returns 1 if requests failed, else 0."""
    from metok_vllm.benchmarks.throughput.charts import ChartError, draw_charts
    from metok_vllm.benchmarks.throughput.records import one_line
    from metok_vllm.benchmarks.throughput.tables import failures, tables

    console = err() if as_json else out()
    if as_json:
        write(one_line(result) + "\n")
    else:
        for table in tables(result):
            console.print(table)
    failed = failures(result)
    for line in failed:
        complain(line)
    names = [RESULT, ROWS]
    try:
        names += [path.name for path in draw_charts(result, folder)]
    except ChartError as error:
        complain(f"no charts: {error}")
    console.print(f"In {folder}: {', '.join(names)}", markup=False)
    return 1 if failed else 0


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
