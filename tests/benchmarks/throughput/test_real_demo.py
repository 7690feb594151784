"""`metok bench --checkpoint demo` with two real servers and few requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metok_vllm import cli
from metok_vllm.demo import CONFIG_FILE

FEW = ["--frames", "16", "--max-concurrency", "1", "--rounds", "1", "--num-prompts", "4"]
FEW += ["--num-warmups", "1", "--output-len", "4", "--questions-per-video", "2"]
FEW += ["--quality-questions", "16"]


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_right_answers_beside_the_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--checkpoint", "demo", *FEW, "--result-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kernels"]["red"] == {}
    # Served as `metok serve --demo` does, at the layers that its decoder was calibrated for.
    assert CONFIG_FILE.name in result["configuration"]["servers"]["metok"]
    assert result["configuration"]["servers_environment"]["THP_MEM_ALLOC_ENABLE"] == "1"
    (quality,) = result["quality"]
    assert (quality["source"], quality["questions"], quality["videos"]) == ("event-QA", 16, 2)
    assert quality["failed"] == {"plain": 0, "metok": 0}
    # A trained model is far above the 15 % of guessing, even with 16 questions.
    assert quality["accuracy"]["plain"]["mean"] >= 0.5
    assert quality["accuracy"]["metok"]["mean"] >= 0.3
    (cell,) = result["cells"]
    assert cell["comparison"]["refused"] is None
    assert cell["comparison"]["ratios"]["requests_per_s"]["median"] > 0
    # Nothing but the load was timed.
    assert {name: m["sent"] for name, m in cell["rounds"][0].items()} == {"plain": 4, "metok": 4}
    for medians in cell["medians"].values():
        first, following = (medians[f"ttft_{nth}_question_s_p50"] for nth in ("first", "next"))
        assert medians["ttft_next_question_times_sooner"] == pytest.approx(first / following)
    # Both servers say what they read from their prefix caches; plain vLLM knows the whole video.
    first, following = (
        cell["turns"]["plain"][name]["cached_tokens"]["median"]
        for name in ("turn 1", "turn 1, shared video")
    )
    assert following > first + 200
    assert "cached_tokens" in cell["turns"]["metok"]["turn 1, shared video"]
    for label in ("right, plain, %", "right, metok, %", "first question p50", "times sooner"):
        assert label in printed
