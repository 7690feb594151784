"""The measurement against a server whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.quality.harness import Answered, Cell, Serve, measure
from metok_vllm.benchmarks.quality.rows import Row, rows
from metok_vllm.benchmarks.quality.serving import running
from metok_vllm.benchmarks.questions.prompts import ALL, read_folder
from metok_vllm.benchmarks.questions.settings import (
    DENSE,
    Setting,
    ablations,
    presets,
    request_config,
)
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from tests.benchmarks.quality.canned import (
    BLOCK,
    GEOMETRY,
    TEXT,
    CannedServer,
    canned_server,
    write_folder,
)

QUESTIONS = [
    {"question": "Where?", "answer": "At sea.", "kind": "scene"},
    {"question": "How many?", "answer": "two", "kind": "count"},
]
METOK = Setting("METok", "METok", {"preset": "balanced"})
FEWER = Setting("half", "fewer frames", {"enabled": False}, frames_share=0.5)
# "Where?" is answered alike in other words' case, "How many?" rightly by dense alone.
DENSE_SAYS = {"Where?": " at sea", "How many?": "two"}
METOK_SAYS = {"Where?": "AT SEA.", "How many?": "three"}


def say(question: str, metok: dict[str, Any] | None) -> str:
    return (DENSE_SAYS if metok == {"enabled": False} else METOK_SAYS)[question]


def measured(
    folder: Path, server: CannedServer, settings: tuple[Setting, ...], frames: int = 8
) -> tuple[dict[str, list[Answered]], dict[tuple[str, str], Row]]:
    write_folder(folder, 3, QUESTIONS)
    asked = tuple(read_folder(folder, frames))
    cell = Cell(frames, asked, settings, {"scene": 0.5, "count": 0.25})
    with canned_server(server) as endpoint:
        batches = list(measure([cell], running(endpoint), GEOMETRY))
    answers = {setting.name: found for _, setting, found in batches}
    found = rows(batches)
    return answers, {(row.setting, row.kind): row for row in found}


def test_figures_are_those_that_the_answers_make(tmp_path: Path) -> None:
    answers, found = measured(tmp_path, CannedServer(say), (DENSE, METOK))
    row = found["METok", ALL]
    assert (row.questions, row.videos, row.failed) == (6, 3, 0)
    assert row.accuracy is not None
    # Every video has one right and one wrong answer, so no draw differs.
    assert (row.accuracy.mean, row.accuracy.low, row.accuracy.high) == (0.5, 0.5, 0.5)
    assert row.difference is not None
    assert row.difference.mean == -0.5
    assert row.agreement is not None
    assert row.agreement.mean == 0
    assert row.chance == 0.375
    assert found["METok", "scene"].accuracy.mean == 1  # type: ignore[union-attr]
    assert found["METok", "count"].accuracy.mean == 0  # type: ignore[union-attr]
    assert found["METok", "count"].chance == 0.25
    dense = found["dense", ALL]
    assert dense.accuracy is not None
    assert dense.agreement is not None
    assert (dense.accuracy.mean, dense.agreement.mean, dense.difference) == (1, 1, None)
    # Dense: 0.8 and 0.1, the rest 0.1; METok: 0.4 and 0.5, the rest 0.1.
    expected = 0.8 * math.log(0.8 / 0.4) + 0.1 * math.log(0.1 / 0.5)
    assert answers["METok"][0].kl == pytest.approx(expected)
    assert answers["dense"][0].kl == 0


def test_memory_and_work_are_those_of_the_reports(tmp_path: Path) -> None:
    answers, found = measured(tmp_path, CannedServer(say), (DENSE, METOK, FEWER))
    metok, dense, half = (answers[name][0] for name in ("METok", "dense", "half"))
    visual = 8 * 16 + 1
    assert dense.kv_tokens == 12 * (visual + TEXT)
    assert metok.kv_tokens == 12 * TEXT + 2 * (visual // 4)  # two layers hold what was encoded
    per_token_layer = 2 * 2 * 32 * 4
    assert metok.kv_bytes == 15 * BLOCK * 2 * per_token_layer  # a block is of two layers
    assert (dense.kv_share, metok.kv_share) == (1, 0.25)
    assert (dense.flops_share, metok.flops_share) == (1, 0.2)
    # Half the frames cost half of what all would, though their own report calls that dense.
    assert (half.flops, half.flops_share) == (4000, 0.5)
    assert found["METok", ALL].kv_bytes == metok.kv_bytes


def test_what_is_asked(tmp_path: Path) -> None:
    server = CannedServer(say)
    measured(tmp_path, server, (DENSE, METOK, FEWER), frames=16)
    dense, metok, half = (server.bodies[start : start + 6] for start in (0, 6, 12))
    assert all("logprob_token_ids" not in body for body in dense)
    # What dense thought likeliest is what the others are asked about.
    assert all(body["logprob_token_ids"] == [7, 8] for body in (*metok, *half))
    assert {str(body["metok"]) for body in metok} == {"{'preset': 'balanced'}"}
    assert {(body["temperature"], body["max_tokens"], body["top_logprobs"]) for body in dense} == {
        (0, 16, 20)
    }
    frames = [{b["media_io_kwargs"]["video"]["num_frames"] for b in part} for part in (dense, half)]
    assert frames == [{16}, {4}]  # the clips have eight frames


def test_answers_may_be_longer(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, QUESTIONS)
    server = CannedServer(say)
    cell = Cell(8, tuple(read_folder(tmp_path, 8)), (DENSE, METOK))
    with canned_server(server) as endpoint:
        list(measure([cell], running(endpoint), None, output_len=200))
        with pytest.raises(ConfigError, match="output_len must be at least 1, got 0"):
            list(measure([cell], running(endpoint), None, output_len=0))
    assert [body["max_tokens"] for body in server.bodies] == [200] * 4


def test_a_video_that_goes_or_breaks_is_a_failed_question(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, QUESTIONS[:1])
    cell = Cell(8, tuple(read_folder(tmp_path, 8)), (DENSE, FEWER))
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "1.mp4").write_text("no video any more")
    with canned_server(CannedServer(say)) as endpoint:
        batches = list(measure([cell], running(endpoint), GEOMETRY))
    dense, half = ([a.error for a in answers] for _, _, answers in batches)
    assert dense == ["0.mp4: No such file or directory", None]
    assert half[0] == "0.mp4: No such file or directory"
    assert (half[1] or "").startswith("1.mp4: ")


def test_a_failed_question_is_counted_and_left_out(tmp_path: Path) -> None:
    def refuse(question: str, metok: dict[str, Any] | None) -> str:
        return "refuse" if metok == METOK.request and question == "How many?" else "two"

    answers, found = measured(tmp_path, CannedServer(refuse), (DENSE, METOK))
    row = found["METok", ALL]
    assert (row.questions, row.failed) == (6, 3)
    assert {a.error for a in answers["METok"]} == {None, "503: draining"}
    assert row.agreement is not None
    assert row.agreement.mean == 1
    assert found["METok", "count"].accuracy is None
    assert found["METok", "count"].kv_share is None


def test_a_server_without_metok_is_no_success(tmp_path: Path) -> None:
    answers, found = measured(tmp_path, CannedServer(say, report=False), (DENSE, METOK))
    assert found["METok", ALL].failed == 6
    assert found["METok", ALL].agreement is None
    assert "does not run METok" in (answers["dense"][0].error or "")


def test_one_server_for_all_settings_that_can_share_it(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, QUESTIONS)
    asked = tuple(read_folder(tmp_path, 8))
    apart = {"pruning_layers": [4, 6, 8]}
    settings = (
        DENSE,
        Setting("deep", "METok", {}, server=apart),
        METOK,
        Setting("deep max", "METok", {"preset": "max"}, server=apart),
    )
    told = []
    with canned_server(CannedServer(say)) as endpoint:
        inner = running(endpoint)

        def serve(fields: Any) -> Any:
            told.append(dict(fields))
            return inner({})

        counted: Serve = serve
        cells = [Cell(8, asked, settings), Cell(16, asked, settings)]
        order = [(c.frames, s.name) for c, s, _ in measure(cells, counted, GEOMETRY)]
    assert told == [{}, apart]
    assert order == [
        *((8, "dense"), (8, "METok"), (16, "dense"), (16, "METok")),
        *((8, "deep"), (8, "deep max"), (16, "deep"), (16, "deep max")),
    ]


def test_an_ablation_changes_one_thing() -> None:
    towers = METokConfig(alignment_model="towers")
    preset, *changed = (request_config(towers, s).to_dict() for s in ablations("max")[1:])
    differ = [{k: v for k, v in one.items() if v != preset[k]} for one in changed]
    assert preset["decode_keep"] == 0.0
    assert differ[1:] == [
        *({"decode_keep": share} for share in (0.1, 0.25, 0.5, 1.0)),
        *({"alignment_mode": mode} for mode in ("shared", "none")),
    ]


def test_settings_that_cannot_be_compared(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, QUESTIONS)
    asked = tuple(read_folder(tmp_path, 8))
    with canned_server(CannedServer(say)) as endpoint:
        serve = running(endpoint)
        with pytest.raises(ConfigError, match="first setting must be dense"):
            list(measure([Cell(8, asked, (METOK, DENSE))], serve, None))
        with pytest.raises(ConfigError, match="two settings are called 'METok'"):
            list(measure([Cell(8, asked, (DENSE, METOK, METOK))], serve, None))
        with pytest.raises(ConfigError, match="at least 1, got 0"):
            list(measure([Cell(8, asked, (DENSE, METOK))], serve, None, concurrency=0))
        other = Setting("x", "x", server={"alignment_mode": "none"})
        with pytest.raises(ConfigError, match="alignment_mode: fixed when a server starts"):
            list(measure([Cell(8, asked, (DENSE, other))], serve, None))
    with pytest.raises(ConfigError, match="no preset 'off' to measure"):
        presets(["off"])
    with pytest.raises(ConfigError, match=r"frames_share must be in \(0, 1\], got 0"):
        Setting("x", "x", frames_share=0)
    with pytest.raises(ConfigError, match="'rule_of' is no setting of a server"):
        Setting("x", "x", server={"rule_of": 1})
