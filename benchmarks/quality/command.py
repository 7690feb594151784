"""One measurement from folders of questions to result files, for both command lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from metok_vllm.benchmarks.environment import environment
from metok_vllm.benchmarks.quality.charts import draw_chart
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import CONCURRENCY, Batch, Cell, Serve, measure
from metok_vllm.benchmarks.quality.kv_gaps import (
    LARGEST_GAP,
    check_layers,
    check_lengths,
    gaps,
    largest,
)
from metok_vllm.benchmarks.quality.records import (
    ANSWERS,
    RESULT,
    ROWS,
    one_line,
    result,
    write_answers,
    write_csv,
)
from metok_vllm.benchmarks.quality.rows import Row, rows
from metok_vllm.benchmarks.quality.tables import failures, percent, tables
from metok_vllm.benchmarks.questions.prompts import ALL, read_chance, read_folder
from metok_vllm.benchmarks.questions.request import OUTPUT_LEN
from metok_vllm.benchmarks.questions.settings import Setting
from metok_vllm.benchmarks.throughput.charts import ChartError
from metok_vllm.benchmarks.throughput.records import write_json
from metok_vllm.config import METokConfig
from metok_vllm.console import complain, err, out, progress, write
from metok_vllm.errors import ConfigError

Settings = Callable[[int], Sequence[Setting]]


@dataclass(frozen=True)
class Plan:
    """The cells to measure and the result folder. `configuration` is copied into the result.

    `assumed` is the server configuration that settings at equal KV were solved for; a server with
    other boundaries is refused. `output_len` bounds the tokens of an answer. `as_json` prints the
    result as a line of JSON in place of the tables.
    """

    cells: tuple[Cell, ...]
    out: Path
    geometry: Geometry | None = None
    concurrency: int = CONCURRENCY
    output_len: int = OUTPUT_LEN
    seed: int = 0
    configuration: Mapping[str, Any] = field(default_factory=dict)
    assumed: METokConfig | None = None
    as_json: bool = False


def read_cells(
    folders: Sequence[Path], frames: Sequence[int], settings: Settings, limit: int | None = None
) -> tuple[Cell, ...]:
    """A cell for each number of frames.

    One folder serves all numbers of frames; several folders pair with them in order. Raises
    ConfigError otherwise, for unusable folders, and for videos too short for equal KV.
    """
    if len(folders) == 1:
        folders = [folders[0]] * len(frames)
    if len(folders) != len(frames):
        raise ConfigError(
            f"{len(folders)} folders and {len(frames)} numbers of frames do not go together: "
            "name one folder, or one for each number",
            "folder",
        )
    if len(set(frames)) < len(frames) or min(frames) < 1:
        raise ConfigError(f"frames must be different and 1 or more, got {list(frames)}", "frames")
    cells: list[Cell] = []
    for folder, count in zip(folders, frames, strict=True):
        questions = tuple(read_folder(folder, count, limit))
        cell = Cell(count, questions, tuple(settings(count)), read_chance(folder))
        check_lengths(cell)
        cells.append(cell)
    return tuple(cells)


def run(plan: Plan, serve: Serve) -> int:
    """Measure, save after every setting, print. Returns 1 if questions failed, else 0.

    Raises ConfigError if the server refuses the questions, and if its boundaries differ from the
    assumed ones; OSError if nothing can be written.
    """
    batches: list[Batch] = []
    facts = environment()
    with _result_folder(plan.out), progress() as report:
        sizes = (plan.geometry, plan.concurrency, plan.output_len)
        for batch in measure(plan.cells, serve, *sizes, report):
            batches.append(batch)
            record, found = _save(plan, facts, batches)
            complain(_progress(plan, batches, found))
            if plan.assumed is not None and plan.geometry is not None:
                check_layers(batch[2], plan.assumed, plan.geometry)
    return _show(plan, record, found, batches)


@contextmanager
def _result_folder(folder: Path) -> Iterator[None]:
    """A folder that can be written to; removed again if nothing was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):  # fails now for a read-only folder, not after the first setting
        pass
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _save(
    plan: Plan, facts: Mapping[str, Any], batches: Sequence[Batch]
) -> tuple[dict[str, Any], list[Row]]:
    found = rows(batches, plan.seed)
    equal_kv = gaps(found, plan.cells)
    record = result(found, plan.cells, facts, plan.configuration, plan.geometry, equal_kv)
    write_json(plan.out / RESULT, record)
    write_csv(plan.out / ROWS, found)
    write_answers(plan.out / ANSWERS, batches)
    return record, found


def _progress(plan: Plan, batches: Sequence[Batch], found: Sequence[Row]) -> str:
    cell, setting, _ = batches[-1]
    (row,) = (r for r in found if (r.frames, r.setting, r.kind) == (cell.frames, setting.name, ALL))
    known = {"right": row.accuracy, "as dense": row.agreement}
    figures = [f"{name} {percent(value)} %" for name, value in known.items() if value is not None]
    total = sum(len(cell.settings) for cell in plan.cells)
    return f"{len(batches)}/{total}: {cell.frames} frames, {setting.name}: " + (
        ", ".join(figures) or "no answers"
    )


def _show(
    plan: Plan, record: Mapping[str, Any], found: Sequence[Row], batches: Sequence[Batch]
) -> int:
    console = err() if plan.as_json else out()
    if plan.as_json:
        write(one_line(record) + "\n")
    else:
        for table in tables(found):
            console.print(table)
    unequal = gaps(found, plan.cells)
    if (most := largest(unequal)) is not None:
        console.print(f"The largest gap at equal KV: {most}", markup=False)
    for gap in unequal:
        if abs(gap.gap) > LARGEST_GAP:
            complain(f"not at equal KV: {gap}")
    for line in failures(found):
        complain(line)
    reasons = {answer.error for _, _, answers in batches for answer in answers if answer.error}
    for reason in sorted(reasons):
        complain(f"failed: {reason}")
    names = [RESULT, ROWS, ANSWERS]
    try:
        picture = draw_chart(record, plan.out)
        names += [picture.name] if picture is not None else []
    except ChartError as error:
        complain(f"no chart: {error}")
    console.print(f"In {plan.out}: {', '.join(names)}", markup=False)
    return 1 if reasons else 0
