"""What the commands write where no terminal is: progress lines, and tables that are not cut."""

from __future__ import annotations

import pytest
from rich.table import Table

from metok_vllm.console import out, progress


@pytest.mark.parametrize(("line_s", "shown"), [(0.0, ["one", "two", "three"]), (60.0, ["one"])])
def test_progress_in_a_pipe_is_a_line_now_and_then(
    line_s: float, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(line_s) as report:
        for text in ("one", "two", "three"):
            report(text)
    captured = capsys.readouterr()
    assert captured.err == "".join(f"metok: {text}\n" for text in shown)
    assert captured.out == ""


def test_tables_in_a_pipe_are_not_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table()
    cells = [f"{number}00.0 [100.0, 100.0]" for number in range(10)]
    for _ in cells:
        table.add_column()
    table.add_row(*cells)
    out().print(table)
    shown = capsys.readouterr().out
    assert [cell for cell in cells if cell not in shown] == []
    monkeypatch.setenv("COLUMNS", "60")
    out().print(table)
    assert cells[0] not in capsys.readouterr().out
