"""Two result files side by side, for `metok bench compare a.json b.json`.

Cells match by length and load, servers by name. A ratio is shown only with the agreement of the
answers to requests in both files, and only if no request failed. The accuracy of each run follows,
if its file has one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from metok_vllm.benchmarks.throughput.agreement import recorded_agreement
from metok_vllm.benchmarks.throughput.records import BENCHMARK, SCHEMA
from metok_vllm.benchmarks.throughput.tables import place, quality_of, right_share
from metok_vllm.errors import ConfigError

Record = Mapping[str, Any]

COMPARED = (
    ("requests/s", "requests_per_s", True),
    ("TTFT p50", "ttft_s_p50", False),
    ("a token p50", "per_output_token_s_p50", False),
    ("E2E p50", "end_to_end_s_p50", False),
)

QUALITY = ("answers equal", "right, %")


@dataclass(frozen=True)
class Row:
    """One server in one cell of both files. `ratios` above 1 favour the second file."""

    place: str
    server: str
    figures: tuple[tuple[float | None, float | None], ...]
    ratios: tuple[float | None, ...]
    agreement: float | None
    right: str
    refused: str | None


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ConfigError for any other file."""
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "result") from error
    except ValueError as error:
        raise ConfigError(f"not a JSON file: {path}", "result") from error
    if not isinstance(result, dict) or result.get("benchmark") != BENCHMARK:
        raise ConfigError(f"not a result of `metok bench`: {path}", "result")
    if result.get("schema") != SCHEMA:
        found = result.get("schema")
        raise ConfigError(f"{path} has schema {found!r}, this version reads {SCHEMA}", "result")
    if result.get("refused"):
        raise ConfigError(f"{path} has no figures: {result['refused']}", "result")
    return result


def rows(one: Record, other: Record) -> list[Row]:
    """Every server in every cell that both results contain."""
    theirs = {place(cell): cell for cell in other["cells"]}
    found = []
    for cell in one["cells"]:
        match = theirs.get(place(cell))
        if match is None:
            continue
        answers = [quality_of(result, cell["frames"]) for result in (one, other)]
        for name, medians in cell["medians"].items():
            if name in match["medians"]:
                right = _right(name, *answers)
                found.append(_row(name, cell, match, medians, match["medians"][name], right))
    return found


def differences(one: Record, other: Record) -> list[str]:
    """The differences in environment and configuration, which may explain other figures."""
    lines = []
    for part in ("environment", "configuration"):
        before, after = _flat(one[part]), _flat(other[part])
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                lines.append(f"{part} {key}: {before.get(key)} and {after.get(key)}")
    return lines


def comparison_table(found: list[Row]) -> Table:
    """The rows as a table."""
    table = Table(title="first file, second file (times as good)", title_justify="left")
    table.add_column("")
    for heading in (*(label for label, _, _ in COMPARED), *QUALITY):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for row in found:
        cells = [
            _pair(figures, ratio) for figures, ratio in zip(row.figures, row.ratios, strict=True)
        ]
        same = f"{row.agreement:.0%}" if row.agreement is not None else "-"
        same = same if row.refused is None else row.refused
        table.add_row(f"{row.server}\n{row.place}", *cells, same, row.right)
    return table


def _right(name: str, one: Record | None, other: Record | None) -> str:
    """A server's accuracy in both files, or a note if a file has none."""
    known = [q is not None and q["accuracy"].get(name) is not None for q in (one, other)]
    if not any(known):
        return "in neither file"
    shares = [right_share(quality, name) for quality in (one, other)]
    if not all(known):
        return f"{shares[known.index(True)]}\nnot in the {'second' if known[0] else 'first'} file"
    assert one is not None
    assert other is not None
    text = "\n".join(shares)
    return text if one["digest"] == other["digest"] else f"{text}\nof other questions"


def _row(name: str, one: Record, other: Record, before: Record, after: Record, right: str) -> Row:
    agreement = recorded_agreement(one["requests"][name], other["requests"][name])
    records = [*one["requests"][name], *other["requests"][name]]
    refused = None
    if any(record["error"] is not None for record in records):
        refused = "no ratio: requests failed"
    elif agreement is None:
        refused = "no ratio: no request in common"
    figures = tuple((before[key], after[key]) for _, key, _ in COMPARED)
    ratios = tuple(
        _ratio(*pair, more_is_better=more) if refused is None else None
        for pair, (_, _, more) in zip(figures, COMPARED, strict=True)
    )
    return Row(place(one), name, figures, ratios, agreement, right, refused)


def _ratio(before: float | None, after: float | None, more_is_better: bool) -> float | None:
    if not before or not after:
        return None
    return after / before if more_is_better else before / after


def _pair(figures: tuple[float | None, float | None], ratio: float | None) -> str:
    before, after = ("-" if value is None else f"{value:.3f}" for value in figures)
    return f"{before}\n{after}" + (f"\n({ratio:.2f})" if ratio is not None else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
