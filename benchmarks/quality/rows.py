"""Figures from answers: a row for each setting, number of frames and kind of question."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.quality.harness import Answered, Batch, Cell
from metok_vllm.benchmarks.questions.bootstrap import Draws, Estimate
from metok_vllm.benchmarks.questions.prompts import ALL, VideoQuestion
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
    """All rows in the order of the cells and settings, forms and kinds after `all`.

    Where free-form and multiple choice are both asked, each has a row and kinds of its own.
    """
    by_cell: dict[int, tuple[Cell, list[tuple[Setting, list[Answered]]]]] = {}
    for cell, setting, answers in batches:
        by_cell.setdefault(id(cell), (cell, []))[1].append((setting, answers))
    found = []
    for cell, measured in by_cell.values():
        draws = Draws([question.name for question in cell.questions], seed)
        dense = measured[0][1]
        for setting, answers in measured:
            for kind, numbers in _groups(cell.questions).items():
                mine = [answer for answer in answers if answer.number in numbers]
                chance = _chance([cell.questions[n] for n in sorted(numbers)], cell.chance)
                found.append(_row(setting, kind, mine, dense, draws, chance))
    return found


def _groups(questions: Sequence[VideoQuestion]) -> dict[str, set[int]]:
    """The numbers of the questions of each row by its kind."""
    forms: dict[str, set[int]] = {}
    labels: dict[str, set[int]] = {}
    for number, question in enumerate(questions):
        forms.setdefault(question.form, set()).add(number)
        labels.setdefault(question.label, set()).add(number)
    groups = {ALL: set(range(len(questions)))}
    for parts in (forms, labels):
        groups |= parts if len(parts) > 1 else {}
    return groups


def _row(
    setting: Setting,
    kind: str,
    mine: Sequence[Answered],
    dense: Sequence[Answered],
    draws: Draws,
    chance: float | None,
) -> Row:
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
        chance=chance,
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


def _chance(questions: Sequence[VideoQuestion], chance: Mapping[str, float]) -> float | None:
    """The accuracy of guessing; None if it is unknown for any of the questions."""
    shares = [1 / len(q.choices) if q.choices else chance.get(q.kind) for q in questions]
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if len(known) == len(shares) else None
