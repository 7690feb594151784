"""`metok demo`: its output, and the check of the server's figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from dataclasses import replace
from typing import Any

import psutil
import pytest

from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.server.commands.demo_report import FRAMES, Run, verify, with_median_times
from tests.layouts import square


def answer(encoded: int, prompt: int) -> Run:
    event = {"start_s": 0.0, "end_s": 60.0, "relevance": 0.1, "key": True}
    blocks = {"dense": 200, "prefill": 200 if encoded == 1569 else 100, "decode": 201}
    if encoded != 1569:
        blocks["decode"] = 60
    report = {
        "visual_tokens": {"dense": 1569, "encoded": encoded},
        "kv_blocks": blocks,
        "events": [event],
    }
    return Run("text", 1.0, 2.0, prompt, report)


def with_blocks(run: Run, **blocks: int) -> Run:
    return replace(run, metok={**run.metok, "kv_blocks": {**run.metok["kv_blocks"], **blocks}})


def test_agreeing_figures_pass() -> None:
    verify(answer(1569, 1600), answer(1099, 1130))


@pytest.mark.parametrize(
    ("dense", "metok", "said"),
    [
        (answer(1570, 1600), answer(1099, 1130), "disagree on the dense"),
        (answer(1569, 1600), answer(1569, 1600), "saved no visual tokens"),
        (answer(1569, 1600), answer(1099, 1131), "prompts differ by 469 tokens"),
        (
            answer(1569, 1600),
            with_blocks(answer(1099, 1130), dense=199),
            "disagree on the dense KV blocks",
        ),
        (
            answer(1569, 1600),
            with_blocks(answer(1099, 1130), decode=201),
            "saved no KV blocks",
        ),
    ],
)
def test_figures_that_do_not_agree_are_an_error(dense: Run, metok: Run, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        verify(dense, metok)


def test_no_events_is_an_error() -> None:
    metok = answer(1099, 1130)
    report: dict[str, Any] = {**metok.metok, "events": []}
    with pytest.raises(CommandError, match="no events"):
        verify(answer(1569, 1600), replace(metok, metok=report))


def test_times_are_medians() -> None:
    runs = [replace(answer(1, 1), first_token_s=t, total_s=10 * t) for t in (5.0, 0.1, 0.2)]
    timed = with_median_times(runs)
    assert (timed.first_token_s, timed.total_s) == (0.2, 2.0)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_demo_runs_and_leaves_nothing_behind() -> None:
    # Every process of this run inherits it.
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "metok_vllm.cli", "demo"]
    result = subprocess.run(
        [*command, "--runs", "1", "--max-tokens", "8"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "DEMO_TEST_MARK": mark},
    )
    assert result.returncode == 0, result.stderr
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in result.stdout.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 4
    }
    served = METokConfig.load(config_file=CONFIG_FILE, environ={})
    dense, encoded = square(FRAMES, 8).dense_tokens(), square(FRAMES, 8).encoded_tokens(served)
    assert rows["visual tokens"][:2] == [f"{dense:,}", f"{encoded:,}"]
    prompts = [int(cell.replace(",", "")) for cell in rows["prompt tokens"][:2]]
    assert prompts[0] - prompts[1] == dense - encoded
    layers = [name for name in rows if name.startswith("from layer")]
    kept = [int(rows[name][1].replace(",", "")) for name in layers]
    assert len(kept) == 3
    assert encoded > kept[0] > kept[1] > kept[2] == 0
    assert rows["time to first token"][0].endswith(" s")
    (right,) = re.findall(
        r"^Right: (\d) dense, (\d) with METok, of 9\.$", result.stdout, re.MULTILINE
    )
    assert min(map(int, right)) >= 8
    assert "none of its processes is left" in result.stdout
    assert [p for p in psutil.process_iter() if _mark(p) == mark] == []


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("DEMO_TEST_MARK")
    except (psutil.Error, OSError):
        return None
