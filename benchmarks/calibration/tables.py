"""A calibration in words: what was chosen for each budget, and where the budget goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

PARTS = {
    "drop_from_p2": "no visual token from p2 on",
    "select_at_p1": "+ selection at p1",
    "select_at_p0": "+ selection at p0",
    "decode": "+ decoding on what is kept",
}
Record = Mapping[str, Any]


def choices_table(record: Record) -> Table:
    """One line a budget, one for the same setting behind stage 1, those of the videos held out,
    and stage 1 alone as the last."""
    table = _table("Cheapest settings within the budget (KL in nats a token)")
    table.add_column("budget", no_wrap=True)
    headings = ("p0 p1 p2", "keep", "decode", "first", "after", "agree", "FLOPs", "KV")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, preset in record["presets"].items():
        label = f"{name} {preset['budget']:g}"
        if preset["config"] is None:
            table.add_row(label, "none holds", *[""] * (len(headings) - 1))
            continue
        config = preset["config"]
        layers = " ".join(map(str, config["pruning_layers"]))
        keeps = (f"{config['keep_ratio']:g}", f"{config['decode_keep']:g}")
        table.add_row(label, layers, *keeps, *_moved(preset["divergence"]), *_saved(preset))
        if (behind := preset["with_stage1"]) is not None:
            table.add_row("  and stage 1", "", "", "", *_moved(behind), *_saved(behind))
        if (held := preset["held_out"]) is not None:
            table.add_row("  held out", "", "", "", *_moved(held["divergence"]), "", "")
            if (behind := held["with_stage1"]) is not None:
                table.add_row("  held out, stage 1", "", "", "", *_moved(behind), "", "")
    table.add_row("stage 1 alone", "", "", "", *_moved(record["stage1_alone"]), "", "")
    return table


def parts_table(record: Record) -> Table:
    """The divergence after each part is switched on, and how much of the budget that is."""
    table = _table("Where the budget goes (cumulative)")
    table.add_column("part", no_wrap=True)
    chosen = {n: p for n, p in record["presets"].items() if p["config"] is not None}
    for name in chosen:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("used", justify="right")
    for part, words in PARTS.items():
        row = []
        for preset in chosen.values():
            moved = preset["parts"][part]
            worst = max(moved["first"], moved["following"])
            row += [f"{worst:.3g}", _share(worst, preset["budget"])]
        table.add_row(words, *row)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _moved(moved: Record) -> tuple[str, str, str]:
    return f"{moved['first']:.3g}", f"{moved['following']:.3g}", f"{moved['agreement']:.1%}"


def _saved(measured: Record) -> tuple[str, str]:
    saved = measured["saved"]
    return f"-{saved['prefill_flops']:.1%}", f"-{saved['kv_bytes']:.1%}"


def _share(value: float, budget: float) -> str:
    return f"{value / budget:.0%}" if budget else "-"
