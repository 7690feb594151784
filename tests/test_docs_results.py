"""Every measured figure in the tables of README.md and docs/ is that of a committed result file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()
STEP_TIMES = (ROOT / "docs" / "step-times.md").read_text()
EVENTQA = (ROOT / "docs" / "eventqa.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
PRESETS = ("quality", "balanced", "max")

# docs/benchmarks.md: what stands in a row of a machine's table, and the result file it is from.
LOADS = {
    "64 frames, 1 in flight": "64_frames_1_in_flight",
    "64 frames, 8 in flight": "64_frames_8_in_flight",
    "64 frames, 8 in flight, budget 3,137": "64_frames_8_in_flight_small_budget",
    "64 frames, 32 in flight": "64_frames_32_in_flight",
    "128 frames, 8 in flight": "128_frames_8_in_flight",
    "64 frames, 10 in flight, small pool": "pool",
    "second question, 320 x 240": "second_question",
    "second question, 1280 x 720": "second_question_720p",
    "text, 8 in flight": "text",
    "images, 4 in flight": "images",
}
FIGURES = (
    "requests_per_s",
    "ttft_s_p50",
    "inter_token_s_p50",
    "per_output_token_s_p50",
    "end_to_end_s_p50",
)


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def _throughput_row(label: str, name: str) -> str:
    (cell,) = _result(name)["cells"]
    plain, metok = cell["medians"]["plain"], cell["medians"]["metok"]
    ratios = cell["comparison"]["ratios"]
    rate = f"{_three(plain['requests_per_s'])} | {_three(metok['requests_per_s'])}"
    first, times = "ttft_s_p50", _times(ratios["ttft_s_p50"])
    if label.startswith("second"):
        first = "ttft_next_question_s_p50"
        times = f"{plain[first] / metok[first]:.2f}"
    waits = f"{_three(plain[first])} | {_three(metok[first])}"
    rates = f"{rate} | {_times(ratios['requests_per_s'])}"
    return f"| {label} | {rates} | {waits} | {times} | `{LOADS[label]}` |"


def _three(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:#.3g}".removesuffix(".")


def _times(ratio: dict[str, Any]) -> str:
    low, high = min(ratio["rounds"]), max(ratio["rounds"])
    one_round = len(ratio["rounds"]) == 1
    return f"{ratio['median']:.2f}" + ("" if one_round else f" ({low:.2f} to {high:.2f})")


EPYC_ONLY = {"64 frames, 8 in flight, budget 3,137"}


@pytest.mark.parametrize(
    ("label", "machine"),
    [(label, "cpu") for label in LOADS]
    + [(label, "cpu_amx") for label in LOADS if label not in EPYC_ONLY],
)
def test_throughput(label: str, machine: str) -> None:
    assert _throughput_row(label, f"throughput_{LOADS[label]}.{machine}.json") in BENCHMARKS


def _clients_row(machine: str, load: str) -> str:
    """Largest median difference to our client, and of the means over the server's own clock."""
    name = f"foreign_clients_{load}.{machine}.json"
    result = _result(name)
    cells = []
    for keys in (FIGURES, ("ttft_over_servers", "end_to_end_over_servers")):
        for pair in result["pairs"]:
            found = [abs(pair["difference"][key]) for key in keys if key in pair["difference"]]
            cells.append(f"{max(found):.1%}".replace("%", " %") if found else "")
    rounds = result["configuration"]["rounds"]
    return f"[result](../benchmarks/results/{name}) | {rounds} | {' | '.join(cells)} |"


@pytest.mark.parametrize("machine", ["cpu", "cpu_amx"])
@pytest.mark.parametrize("load", ["demo", "cpu_reference"])
def test_other_clients(machine: str, load: str) -> None:
    assert _clients_row(machine, load) in BENCHMARKS


def test_host_time_of_a_decode_step() -> None:
    for row in _result("step_overhead.cpu.json")["rows"]:
        host = [row[name] for name in ("plain_host_ms", "off_added_ms", "on_added_ms")]
        step = [row[name] for name in ("plain_step_ms", "off_step_ms", "on_step_ms")]
        cells = [f"{value:.2f}" for value in host] + [f"{value:.1f}" for value in step]
        line = f"| {row['groups']} | {row['running']} | {' | '.join(cells)} |"
        assert line in STEP_TIMES


def test_host_time_of_a_step_with_a_chunk() -> None:
    row = _result("chunk_overhead.cpu.json")["row"]
    for kind, shown in (("chunk", "a chunk"), ("last_chunk", "the last chunk")):
        host = [f"{row[f'{name}_{kind}_host_ms']:.2f}" for name in ("plain", "on")]
        low, high = row[f"{kind}_host_ratio_range"]
        ratio = f"{row[f'{kind}_host_ratio']:.2f} ({low:.2f} to {high:.2f})"
        assert f"| {shown} | {' | '.join(host)} | {ratio} |" in STEP_TIMES


def test_the_longest_gap_beside_a_long_prompt() -> None:
    result = _result("neighbour_gap.cpu.json")
    names = {"plain": "plain vLLM", "balanced": "METok, `balanced`", "quality": "METok, `quality`"}
    for name, shown in names.items():
        row = result["medians"][name]
        ratios = result["gap_ratios"].get(name)
        ratio = f"{statistics.median(ratios):.2f} " if ratios else ""
        cells = [f"{row['prompt_tokens']:.0f}", f"{row['steps']:.0f}", f"{row['gap_s']:.1f}"]
        line = f"| {shown} | {' | '.join(cells)} | {ratio}| {row['first_token_s']:.1f} |"
        assert line in STEP_TIMES


def test_the_readme_shows_the_measured_row() -> None:
    (cell,) = _result("throughput_64_frames_8_in_flight.cpu.json")["cells"]
    plain, metok = cell["medians"]["plain"], cell["medians"]["metok"]
    ratios = cell["comparison"]["ratios"]
    for key, unit in (("requests_per_s", ""), ("ttft_s_p50", " s")):
        cells = [_three(plain[key]) + unit, _three(metok[key]) + unit]
        cells.append(f"**{ratios[key]['median']:.1f} times**")
        assert " | ".join(cells) in README


# docs/eventqa.md: accuracy by setting. 16 frames come from the run that has all lengths.
KINDS = ("scene", "object", "detail", "order", "count", "exists", "list", "needle")
RIVALS = ("fewer frames", "random", "EVS", "VidCom2", "FastV")
ALL_LENGTHS = "quality_frontier_medium_stride_4_demo.cpu.json"
FRONTIER = "quality_frontier_64_128_demo.cpu.json"


def _rows(name: str) -> dict[tuple[int, str], dict[str, Any]]:
    """By frames and setting: the row over all kinds, with each kind's accuracy under its name."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in _result(name)["rows"]:
        entry = found.setdefault((row["frames"], row["setting"]), {})
        if row["kind"] == "all":
            entry.update(row)
        else:
            entry[row["kind"]] = row["accuracy"]["mean"]
            entry[f"{row['kind']}, difference"] = row["difference"]
    return found


def _interval(value: dict[str, float], sign: str = "") -> str:
    low, high = value["low"], value["high"]
    return f"{100 * value['mean']:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def _answers_row(row: dict[str, Any], shown: str) -> str:
    difference = _interval(row["difference"], "+") if row["difference"] else ""
    shares = f"{100 * row['kv_share']:.1f} % | {100 * row['flops_share']:.1f} %"
    kinds = " | ".join(f"{100 * row[kind]:.0f}" for kind in KINDS)
    return f"| {shown} | {_interval(row['accuracy'])} | {difference} | {shares} | {kinds} |"


def _answers_rows() -> Iterator[str]:
    short, long = _rows(ALL_LENGTHS), _rows(FRONTIER)
    yield _answers_row(short[16, "dense"], "16 | dense")
    for preset in PRESETS:  # two frames an event, all of them key frames: the presets are one
        yield _answers_row(short[16, preset], "16 | all three")
    for frames in (64, 128):
        yield _answers_row(long[frames, "dense"], f"{frames} | dense")
        for preset in PRESETS:
            yield _answers_row(long[frames, preset], f"{frames} | `{preset}`")


def _rivals_rows() -> Iterator[str]:
    for frames, presets in ((16, ("balanced",)), (64, PRESETS), (128, PRESETS)):
        rows = _rows(ALL_LENGTHS if frames == 16 else FRONTIER)
        for preset in presets:
            ours = rows[frames, preset]
            cells = [f"{100 * ours['accuracy']['mean']:.1f}"]
            for rival in RIVALS:
                row = rows.get((frames, f"{rival} = {preset}"))
                below = row and row["accuracy"]["high"] < ours["accuracy"]["low"]
                mean = f"{100 * row['accuracy']['mean']:.1f}" if row else ""
                cells.append(mean + (" ↓" if below else ""))
            name = "all three" if frames == 16 else f"`{preset}`"
            shares = f"{100 * ours['kv_share']:.1f} %, {100 * ours['flops_share']:.1f} %"
            yield f"| {frames}, {name} | {shares} | {' | '.join(cells)} |"


def _choices_rows() -> Iterator[str]:
    rows = _rows("quality_ablations_64_demo.cpu.json")
    yield _answers_row(rows[64, "dense"], "dense")
    for keep in ("1", "0.5", "0.25", "0.1", "0"):
        yield _answers_row(rows[64, f"decode_keep {keep}"], f"`decode_keep` {keep}")
    for mode in ("shared", "none"):
        yield _answers_row(rows[64, f"alignment {mode}"], f"`alignment_mode` {mode}")


def _fine_detail_rows() -> Iterator[str]:
    kinds = ["detail", "count", "read"]
    columns = ["free-form", "multiple choice", *kinds, *(f"{kind}, choice" for kind in kinds)]
    rows = _rows("quality_fine_detail_64_demo.cpu.json")
    for name in ("dense", *PRESETS):
        cells = " | ".join(f"{100 * rows[64, name][kind]:.0f}" for kind in columns)
        yield f"| {name if name == 'dense' else f'`{name}`'} | {cells} |"
    for kind in columns[:2]:
        loss = rows[64, "max"][f"{kind}, difference"]
        yield f"{-100 * loss['mean']:.1f} ({-100 * loss['high']:.1f} to {-100 * loss['low']:.1f})"


@pytest.mark.parametrize("rows", [_answers_rows, _rivals_rows, _choices_rows, _fine_detail_rows])
def test_answers_on_event_qa(rows: Callable[[], Iterator[str]]) -> None:
    assert [row for row in rows() if row not in EVENTQA] == []
