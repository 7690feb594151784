"""The tables of figures by turn, from the JSON of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

TITLE = "By turn, median of rounds (lowest to highest); times in seconds"
FIGURES = (
    ("TTFT p50", "ttft_s_p50", "{:.2f}"),
    ("E2E p50", "end_to_end_s_p50", "{:.2f}"),
    ("prompt tokens", "prompt_tokens", "{:.0f}"),
    ("cached tokens", "cached_tokens", "{:.0f}"),
)
# The names of ratios by turn begin with it (pairs.py).
RATIO = "ttft_s_p50, "


def turn_table(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """A block of rows for every turn; `columns` are headings and a server's turns in one cell.

    None if there was one turn about every video.
    """
    names = list(dict.fromkeys(name for _, turns in columns for name in turns))
    if len(names) < 2:
        return None
    table = Table(title=TITLE, title_justify="left")
    table.add_column("")
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for name in names:
        for number, (label, figure, form) in enumerate(FIGURES):
            values = [turns.get(name, {}).get(figure) for _, turns in columns]
            table.add_row(
                f"{name}: {label}" if number == 0 else f"  {label}",
                *(_ranged(value, form) for value in values),
                end_section=number == len(FIGURES) - 1,
            )
    return table


def turn_ratios(ratios: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Label and name of every ratio by turn that one of `ratios` contains; none for one turn."""
    names = list(dict.fromkeys(name for each in ratios for name in each if name.startswith(RATIO)))
    for name in names if len(names) > 1 else ():
        yield f"TTFT p50, {name.removeprefix(RATIO)}", name


def _ranged(value: Mapping[str, float] | None, form: str) -> str:
    if value is None:
        return "-"
    median, low, high = (form.format(value[key]) for key in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"
