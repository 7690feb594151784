"""A calibration's JSON as tables and as a chart of the sensitivity curves.

The chart needs matplotlib (`pip install "metok-vllm[bench]"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metok_vllm.benchmarks.throughput.charts import new_figure

PARTS = {
    "drop_from_p2": "no visual token from p2 on",
    "select_at_p1": "+ selection at p1",
    "select_at_p0": "+ selection at p0",
    "decode": "+ decoding on the kept tokens",
}
Record = Mapping[str, Any]


def choices_table(record: Record) -> Table:
    """The choice of each budget, with stage 1, and on held-out videos; then stage 1 alone."""
    table = _table("Cheapest settings within the budget (KL in nats a token)")
    table.add_column("budget", no_wrap=True)
    headings = ("p0 p1 p2", "keep", "decode", "first", "after", "agree", "FLOPs", "KV")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, preset in record["presets"].items():
        label = f"{name} {preset['budget']:g}"
        if preset["config"] is None:
            table.add_row(label, "none within", *[""] * (len(headings) - 1))
            continue
        config = preset["config"]
        layers = " ".join(map(str, config["pruning_layers"]))
        keeps = (f"{config['keep_ratio']:g}", f"{config['decode_keep']:g}")
        table.add_row(label, layers, *keeps, *_moved(preset["divergence"]), *_saved(preset))
        if (with_stage1 := preset["with_stage1"]) is not None:
            figures = (*_moved(with_stage1), *_saved(with_stage1))
            table.add_row("  and stage 1", "", "", "", *figures)
        if (held := preset["held_out"]) is not None:
            table.add_row("  held out", "", "", "", *_moved(held["divergence"]), "", "")
            if (with_stage1 := held["with_stage1"]) is not None:
                table.add_row("  held out, stage 1", "", "", "", *_moved(with_stage1), "", "")
    table.add_row("stage 1 alone", "", "", "", *_moved(record["stage1_alone"]), "", "")
    return table


def parts_table(record: Record) -> Table:
    """The divergence after each part of METok is added, and its share of the budget."""
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


# Distinguishable for colour-blind readers (Okabe and Ito).
DROP, DECODE, BUDGET = "#0072b2", "#d55e00", "#8a9199"
RATIO_COLOURS = ("#009e73", "#56b4e9", "#e69f00", "#cc79a7")
SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
LEAST = 1e-6  # nats; smaller values are noise and are drawn here


def draw_chart(record: Record, path: Path) -> None:
    """Divergence by the layer from which tokens are dropped, and the chosen boundaries.

    `path` ends with one of SUFFIXES. Raises ChartError without matplotlib, OSError if the file
    cannot be written, ValueError if matplotlib refuses to draw.
    """
    figure = new_figure(9, 5)
    axes = figure.add_subplot()
    curves = record["curves"]
    _line(axes, curves["drop"], "first", DROP, "-", "o", "all dropped from k on: first token")
    _line(axes, curves["drop"], "following", DROP, "--", "", "all dropped from k on: following")
    _line(axes, curves["decode"], "following", DECODE, "--", "s", "decoding on text from k on")
    for (ratio, curve), colour in zip(curves["first"].items(), RATIO_COLOURS, strict=False):
        _line(axes, curve, "worst", colour, ":", "", f"selected at k as at p0, ratio {ratio}")
    for name, preset in record["presets"].items():
        axes.axhline(preset["budget"], color=BUDGET, linewidth=0.8)
        chosen = preset["config"]
        layers = "none" if chosen is None else ", ".join(map(str, chosen["pruning_layers"]))
        # Curves fall from left to right, which leaves the left free for labels.
        axes.annotate(
            f"{name}: {layers}", (0, max(preset["budget"], LEAST)), fontsize=7, va="bottom"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST)
    axes.set_xlabel("decoder layer k")
    axes.set_ylabel("KL(dense || pruned), nats a token")
    axes.set_title(f"{record['prompts']} prompts", loc="left", fontsize=10)
    axes.grid(axis="y", color="#e2e5e8")
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    figure.savefig(path)


def _line(
    axes: Any, curve: Sequence[Record], value: str, colour: str, dash: str, marker: str, label: str
) -> None:
    layers = [point["layer"] for point in curve]
    worst = [
        max(point["first"], point["following"]) if value == "worst" else point[value]
        for point in curve
    ]
    heights = [max(height, LEAST) for height in worst]
    axes.plot(layers, heights, color=colour, linestyle=dash, marker=marker or None, label=label)
