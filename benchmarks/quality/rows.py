"""Figures from answers: a row for each setting, number of frames and kind of question."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.quality.harness import Answered, Batch, Cell
from metok_vllm.benchmarks.questions.bootstrap import Draws, Estimate
from metok_vllm.benchmarks.questions.prompts import ALL
from metok_vllm.benchmarks.questions.settings import Setting

Value = Callable[[Answered], float | None]


@dataclass(frozen=True)
class Row:
    """Estimates over the answered questions, with intervals over videos; None if unknown.

    `difference` is the accuracy minus dense's on the same questions, `chance` that of guessing.
    `lessened` counts answers with less pruning than configured. The last five are means.
    """

    setting: str
    line: str
    frames: int
    kind: str
    videos: int
    questions: int
    failed: int
    lessened: int
    chance: float | None
    accuracy: Estimate | None
    difference: Estimate | None
    agreement: Estimate | None
    kl: Estimate | None
    kv_tokens: float | None
    kv_bytes: float | None
    kv_share: float | None
    flops: float | None
    flops_share: float | None


def rows(batches: Iterable[Batch], seed: int = 0) -> list[Row]:
    """All rows in the order of the cells and settings, kinds after `all`."""
    by_cell: dict[int, tuple[Cell, list[tuple[Setting, list[Answered]]]]] = {}
    for cell, setting, answers in batches:
        by_cell.setdefault(id(cell), (cell, []))[1].append((setting, answers))
    found = []
    for cell, measured in by_cell.values():
        draws = Draws([question.name for question in cell.questions], seed)
        dense = measured[0][1]
        kinds = list(dict.fromkeys(question.kind for question in cell.questions))
        for setting, answers in measured:
            for kind in (ALL, *kinds) if len(kinds) > 1 else (ALL,):
                found.append(_row(setting, kind, answers, dense, draws, cell.chance))
    return found


def _row(
    setting: Setting,
    kind: str,
    answers: Sequence[Answered],
    dense: Sequence[Answered],
    draws: Draws,
    chance: Mapping[str, float],
) -> Row:
    mine = [a for a in answers if kind in (ALL, a.kind)]
    right_before = {a.number: a.right for a in dense if a.right is not None}
    gains = {
        a.number: float(a.right) - float(right_before[a.number])
        for a in mine
        if a.right is not None and a.number in right_before
    }
    return Row(
        setting=setting.name,
        line=setting.line,
        frames=mine[0].frames,
        kind=kind,
        videos=len({a.video for a in mine}),
        questions=len(mine),
        failed=sum(a.error is not None for a in mine),
        lessened=sum(a.unpruned is not None for a in mine),
        chance=_chance([a.kind for a in mine], chance),
        accuracy=_estimate(draws, mine, lambda a: a.right),
        difference=None
        if setting.is_dense
        else _estimate(draws, mine, lambda a: gains.get(a.number)),
        agreement=_estimate(draws, mine, lambda a: a.agrees),
        kl=_estimate(draws, mine, lambda a: a.kl),
        kv_tokens=_mean(mine, lambda a: a.kv_tokens),
        kv_bytes=_mean(mine, lambda a: a.kv_bytes),
        kv_share=_mean(mine, lambda a: a.kv_share),
        flops=_mean(mine, lambda a: a.flops),
        flops_share=_mean(mine, lambda a: a.flops_share),
    )


def _estimate(draws: Draws, answers: Sequence[Answered], value: Value) -> Estimate | None:
    return draws.estimate([a.video for a in answers], [value(a) for a in answers])


def _mean(answers: Sequence[Answered], value: Value) -> float | None:
    known = [v for a in answers if (v := value(a)) is not None]
    return statistics.fmean(known) if known else None


def _chance(kinds: Sequence[str], chance: Mapping[str, float]) -> float | None:
    if not set(kinds) <= chance.keys():
        return None
    return statistics.fmean(chance[kind] for kind in kinds)
