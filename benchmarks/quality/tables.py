"""The rows as tables. Intervals are in brackets, in percentage points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.table import Table

from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.questions.bootstrap import Estimate
from metok_vllm.benchmarks.questions.prompts import ALL

Shown = Callable[[Row], str]


def tables(found: Sequence[Row]) -> list[Table]:
    """For every number of frames: the settings side by side, then their accuracy by kind."""
    shown = []
    for frames in dict.fromkeys(row.frames for row in found):
        mine = [row for row in found if row.frames == frames]
        shown.append(_settings(frames, [row for row in mine if row.kind == ALL]))
        if any(row.kind != ALL and row.accuracy is not None for row in mine):
            shown.append(_kinds(frames, mine))
    return shown


def failures(found: Sequence[Row]) -> list[str]:
    """A line for every setting with failed questions or with less pruning than configured."""
    lines = []
    for row in found:
        where = f"{row.frames} frames, {row.setting}"
        if row.kind == ALL and row.failed:
            lines.append(f"{where}: {row.failed} of {row.questions} questions failed")
        if row.kind == ALL and row.lessened:
            lines.append(f"{where}: {row.lessened} of {row.questions} prompts were not pruned")
    return lines


def _settings(frames: int, found: Sequence[Row]) -> Table:
    columns: dict[str, tuple[bool, Shown]] = {
        "accuracy": (any(r.accuracy for r in found), lambda r: percent(r.accuracy)),
        "to dense": (any(r.difference for r in found), lambda r: percent(r.difference, "+.1f")),
        "as dense": (any(r.agreement for r in found), lambda r: percent(r.agreement)),
        "KL, nats": (any(r.kl for r in found), lambda r: _nats(r.kl)),
        "KV": (any(r.kv_share for r in found), lambda r: _share(r.kv_share)),
        "KV, KiB": (any(r.kv_bytes for r in found), lambda r: _kib(r.kv_bytes)),
        "FLOPs": (any(r.flops_share for r in found), lambda r: _share(r.flops_share)),
    }
    first = found[0]
    chance = "" if first.chance is None else f"; guessing: {100 * first.chance:.1f} %"
    title = f"{frames} frames, {first.questions} questions about {first.videos} videos{chance}"
    return _table(title, {name: show for name, (there, show) in columns.items() if there}, found)


def _kinds(frames: int, found: Sequence[Row]) -> Table:
    kinds = dict.fromkeys(row.kind for row in found if row.kind != ALL)
    by_place = {(row.setting, row.kind): row for row in found}

    firsts = [row for row in found if row.kind == ALL]
    title = f"{frames} frames, accuracy by kind of question"
    table = _table(title, {kind: partial(_accuracy, by_place, kind) for kind in kinds}, firsts)
    chances = [by_place[firsts[0].setting, kind].chance for kind in kinds]
    if any(chance is not None for chance in chances):
        table.add_section()
        table.add_row("guessing", *("-" if c is None else f"{100 * c:.1f}" for c in chances))
    return table


def _accuracy(by_place: Mapping[tuple[str, str], Row], kind: str, row: Row) -> str:
    return percent(by_place[row.setting, kind].accuracy)


def _table(title: str, columns: dict[str, Shown], found: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("setting")
    for name in columns:
        table.add_column(name, justify="right")
    for row in found:
        table.add_row(row.setting, *(show(row) for show in columns.values()))
    return table


def percent(estimate: Estimate | None, form: str = ".1f") -> str:
    """A share in per cent with its interval, or a dash in place of a missing interval."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{format(100 * estimate.mean, form)} [-]"
    mean, low, high = (format(100 * v, form) for v in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _nats(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.3f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _kib(value: float | None) -> str:
    return "-" if value is None else f"{value / 1024:,.0f}"
