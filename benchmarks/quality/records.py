"""The files of a measurement: a self-describing JSON, a CSV, and every answer.

`result.json` holds the settings and all rows, `rows.csv` the rows, `answers.jsonl` a line for each
answer with its text. `SCHEMA` increases when a field changes its meaning.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.environment import record_head
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import Batch, Cell
from metok_vllm.benchmarks.quality.kv_gaps import Gap
from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.questions.bootstrap import LEVEL, RESAMPLES, Estimate
from metok_vllm.benchmarks.questions.prompts import ALL

BENCHMARK = "quality"
SCHEMA = 1
RESULT, ROWS, ANSWERS = "result.json", "rows.csv", "answers.jsonl"
ESTIMATES = ("accuracy", "difference", "agreement", "kl")


def result(
    found: Sequence[Row],
    cells: Sequence[Cell],
    environment: Mapping[str, Any],
    configuration: Mapping[str, Any],
    geometry: Geometry | None,
    equal_kv: Sequence[Gap] = (),
) -> dict[str, Any]:
    """The measurement without its answers, JSON-ready."""
    return {
        **record_head(BENCHMARK, SCHEMA, environment, configuration),
        "model": None if geometry is None else geometry.to_dict(),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "over": "videos"},
        "cells": [
            {
                "frames": cell.frames,
                "questions": len(cell.questions),
                "chance": dict(cell.chance),
                "settings": [asdict(setting) for setting in cell.settings],
            }
            for cell in cells
        ],
        "equal_kv": [asdict(gap) for gap in equal_kv],
        "rows": [asdict(row) for row in found],
    }


def one_line(record: Mapping[str, Any]) -> str:
    """The result in one line: rows over all kinds, without the settings."""
    short = {key: value for key, value in record.items() if key != "cells"}
    short["rows"] = [row for row in record["rows"] if row["kind"] == ALL]
    return json.dumps(short, allow_nan=False)


def read_rows(record: Mapping[str, Any]) -> list[Row]:
    """The rows of a result that was read from its file."""
    found = []
    for row in record["rows"]:
        values: dict[str, Any] = dict(row)
        for name in ESTIMATES:
            values[name] = Estimate(**row[name]) if row[name] else None
        found.append(Row(**values))
    return found


def write_csv(path: Path, found: Iterable[Row]) -> None:
    """A line for each row; an estimate takes three columns, an unknown figure is empty."""
    names = [column for f in fields(Row) for column in _columns(f.name)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in found:
            writer.writerow(_flat(row))


def write_answers(path: Path, batches: Iterable[Batch]) -> None:
    """A line of JSON for every answer."""
    with path.open("w") as file:
        for _, _, answers in batches:
            file.writelines(json.dumps(asdict(answer)) + "\n" for answer in answers)


def _columns(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"] if name in ESTIMATES else [name]


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(row).items():
        if name in ESTIMATES:
            three = value.values() if value else (None,) * 3
            flat |= dict(zip(_columns(name), three, strict=True))
        else:
            flat[name] = value
    return flat
