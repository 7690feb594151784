"""What `metok demo` shows: both answers, a table of what each cost, and whether that adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from rich.panel import Panel
from rich.table import Table

from metok_vllm.console import CommandError, out
from metok_vllm.server.savings import (
    count,
    deeper_layers,
    events_line,
    flop_count,
    share_saved,
    unpruned_line,
)

FRAMES = 64  # that are sampled: about one a second; of short videos there is little to save


@dataclass(frozen=True)
class Run:
    """One streamed answer. Times are seconds from sending the request."""

    text: str
    first_token_s: float
    total_s: float
    prompt_tokens: int
    metok: dict[str, Any]


def with_median_times(runs: Sequence[Run]) -> Run:
    """The first run, with the median times of all."""
    first_token_s = median(run.first_token_s for run in runs)
    return replace(
        runs[0], first_token_s=first_token_s, total_s=median(run.total_s for run in runs)
    )


def show(question: str, dense: Run, metok: Run, runs: int) -> None:
    """Print question, answers and table; `runs` is how many times are behind each."""
    console = out()
    console.print(f"\nQuestion, about {FRAMES} frames: {question}", markup=False)
    for name, answer in (("dense", dense), ("with METok", metok)):
        # Asked about what it does not know, a small model may say anything.
        shown = "".join(c if c.isprintable() else " " for c in answer.text)
        console.print(Panel(shown, title=f"answer, {name}", title_align="left"), markup=False)
    console.print(
        "The embedded demo model is small: it was trained for this project on drawn videos of this "
        "kind\nand answers questions of the kinds below, about this video and fresh ones.\n"
    )
    table = Table()
    for heading in ("", "dense", "METok", "saved"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    blocks_d, blocks_m = dense.metok["kv_blocks"], metok.metok["kv_blocks"]
    rows: list[tuple[str, float, float, Any]] = [
        ("visual tokens", *(r.metok["visual_tokens"]["encoded"] for r in (dense, metok)), count),
        *(
            (name, dense.metok["visual_tokens"]["encoded"], kept, count)
            for name, kept in deeper_layers(metok.metok)
        ),
        ("prompt tokens", dense.prompt_tokens, metok.prompt_tokens, count),
        ("KV blocks held after prefill", blocks_d["prefill"], blocks_m["prefill"], count),
        ("KV blocks held in decoding", blocks_d["decode"], blocks_m["decode"], count),
        (
            "decoder prefill",
            *(r.metok["decoder_prefill_flops"]["metok"] for r in (dense, metok)),
            flop_count,
        ),
        ("time to first token", dense.first_token_s, metok.first_token_s, _seconds),
        ("total time", dense.total_s, metok.total_s, _seconds),
    ]
    for name, before, after, written in rows:
        table.add_row(name, written(before), written(after), share_saved(before, after))
    console.print(table)
    console.print(events_line(metok.metok), markup=False)
    if (line := unpruned_line(metok.metok)) is not None:
        console.print(line, markup=False)
    console.print(
        f"Times: median of {runs} run(s) each, in turns, after a short warm-up request of each "
        "kind; no cache helps.\nThey include decoding the video and the vision tower, which "
        "METok does not shorten; on a model this small\nthey say little about a large one."
    )


def verify(dense: Run, metok: Run) -> None:
    """The server's figures must agree with each other, or the table means nothing."""
    tokens = metok.metok["visual_tokens"]
    if dense.metok["visual_tokens"]["encoded"] != tokens["dense"]:
        raise CommandError("the dense run and METok's report disagree on the dense visual tokens")
    if not tokens["encoded"] < tokens["dense"]:
        raise CommandError(f"METok saved no visual tokens: {tokens}")
    saved = tokens["dense"] - tokens["encoded"]
    if dense.prompt_tokens - metok.prompt_tokens != saved:
        raise CommandError(
            f"prompts differ by {dense.prompt_tokens - metok.prompt_tokens} tokens, "
            f"visual tokens by {saved}"
        )
    blocks_d, blocks_m = dense.metok["kv_blocks"], metok.metok["kv_blocks"]
    if blocks_d["prefill"] != blocks_m["dense"]:
        raise CommandError("the dense run and METok's report disagree on the dense KV blocks")
    if not blocks_m["decode"] < blocks_d["decode"]:
        raise CommandError(f"METok saved no KV blocks: {blocks_m}")
    if not metok.metok["events"]:
        raise CommandError("the server reported no events")


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
