"""What `metok demo` prints: answers with and without METok, their costs, and a check of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from metok_vllm.console import CommandError, out
from metok_vllm.server.savings import (
    blocks_line,
    count,
    deeper_layers,
    events_line,
    flop_count,
    share_saved,
    unpruned_line,
)

FRAMES = 64  # sampled frames: about one a second


# Asks a question, with METok or without; returns the text of the answer.
Ask = Callable[[str, bool], str]


@dataclass(frozen=True)
class Run:
    """One streamed answer. Times are seconds from sending the request."""

    text: str
    first_token_s: float
    total_s: float
    prompt_tokens: int
    metok: dict[str, Any]


def with_median_times(runs: Sequence[Run]) -> Run:
    """The first run, with the median times of all runs."""
    first_token_s = median(run.first_token_s for run in runs)
    return replace(
        runs[0], first_token_s=first_token_s, total_s=median(run.total_s for run in runs)
    )


def show(question: str, dense: Run, metok: Run, runs: int) -> None:
    """Print question, answers and table; `runs` is the number of timed runs of each kind."""
    console = out()
    console.print(f"\nQuestion, about {FRAMES} frames: {question}", markup=False)
    for name, answer in (("dense", dense), ("with METok", metok)):
        shown = _printable(answer.text)
        console.print(Panel(shown, title=f"answer, {name}", title_align="left"), markup=False)
    console.print(
        "The embedded demo model is small: it was trained for this project on drawn videos like "
        "this one.\nIt answers questions of the kinds below, also about new videos of this kind.\n"
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
    for line in (unpruned_line(metok.metok), blocks_line(metok.metok)):
        if line is not None:
            console.print(line, markup=False)
    console.print(
        f"Times: median of {runs} run(s) each, alternating, after a short warm-up request of each "
        "kind, without cache hits.\nThey include video decoding and the vision tower, which METok "
        "does not shorten. On a model this small\nthey say little about a large one."
    )


def verify(dense: Run, metok: Run) -> None:
    """Raise CommandError if the server's figures contradict each other or show no saving."""
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


def show_answers(ask: Ask) -> None:
    """Ask the demo's questions and print a table. Raises CommandError if a request fails."""
    import openai

    from metok_vllm.demo import QUESTIONS

    table = Table(title="More questions about the video", title_justify="left")
    for heading in ("question", "right", "dense", "METok"):
        table.add_column(heading)
    num_right = {False: 0, True: 0}
    try:
        for question, right in QUESTIONS:
            answers = {enabled: ask(question, enabled).strip() for enabled in num_right}
            for enabled, answer in answers.items():
                num_right[enabled] += answer == right
            table.add_row(question, right, *(mark(answer, right) for answer in answers.values()))
    except openai.OpenAIError as error:
        raise CommandError(f"a request failed: {error}") from error
    console = out()
    console.print(table)
    dense, metok = num_right.values()
    console.print(f"Right: {dense} dense, {metok} with METok, of {len(QUESTIONS)}.")


def mark(answer: str, right: str) -> str:
    """The cell of an answer: a tick if it is right, else a cross and the answer."""
    return "\u2713" if answer == right else f"\u2717 {escape(_printable(answer))}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
