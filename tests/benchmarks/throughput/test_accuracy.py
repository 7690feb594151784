"""Accuracy after the load: questions, marking, and no effect on the timing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metok_vllm import cli
from metok_vllm.benchmarks.throughput import accuracy, servers
from metok_vllm.benchmarks.throughput.accuracy import Quality, QuestionSet
from metok_vllm.console import CommandError
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.errors import ConfigError
from tests.benchmarks.throughput.answering_server import answering, write_folder

SMALL = ["--frames", "8", "--max-concurrency", "1", "--rounds", "1", "--num-prompts", "2"]
SMALL += ["--text-share", "1", "--num-warmups", "1"]


def asked_of_both(folder: Path, count: int = 6, **wrong: str) -> Quality:
    questions = accuracy.of_folder(folder, 8, count)
    with answering("plain") as (_, plain), answering("metok", **wrong) as (_, metok):
        return asyncio.run(accuracy.measure_quality([plain, metok], questions, 30))


def test_who_was_right_and_by_how_much(tmp_path: Path) -> None:
    found = asked_of_both(write_folder(tmp_path / "f"), How="four")
    assert (found.videos, found.questions, found.frames, found.source) == (2, 6, 8, "f")
    plain, metok = found.accuracy["plain"], found.accuracy["metok"]
    assert plain is not None
    assert metok is not None
    assert (plain.mean, metok.mean) == pytest.approx((1, 2 / 3))
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(-1 / 3)
    assert found.chance == pytest.approx((0.125 + 0.25 + 0.5) / 3)
    assert found.agreement is not None
    assert found.agreement.exact == pytest.approx(2 / 3)
    assert found.lacks is None


def test_silence_is_a_wrong_answer_and_a_refusal_is_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f")
    silent = asked_of_both(folder, Is="")
    assert silent.failed == {"plain": 0, "metok": 0}
    assert silent.accuracy["metok"] is not None
    assert silent.accuracy["metok"].mean == pytest.approx(2 / 3)
    refused = asked_of_both(folder, Is="refuse")
    assert refused.failed == {"plain": 0, "metok": 2}
    assert refused.lacks == "questions failed: 2 of metok"


def test_questions_are_sent_as_the_workload_is(tmp_path: Path) -> None:
    questions = accuracy.of_folder(write_folder(tmp_path / "f"), 8, 4)
    with answering("plain") as (server, endpoint):
        found = asyncio.run(accuracy.measure_quality([endpoint], questions, 30))
    assert (found.difference, found.agreement) == (None, None)
    assert len(server.bodies) == 4
    for body in server.bodies:
        assert body["media_io_kwargs"] == {"video": {"num_frames": 8}}
        assert body["messages"][0]["content"][0]["type"] == "video_url"
        assert body["temperature"] == 0
        # METok's settings are the server's own; an answer may end when it is complete.
        assert not {"metok", "ignore_eos", "logprobs"} & body.keys()


def test_event_qa_is_held_out_and_the_same_for_a_seed() -> None:
    with accuracy.event_qa((8, 4), 9, seed=3) as sets:
        assert [(s.frames, len(s.questions), s.source) for s in sets] == [
            (8, 9, "event-QA"),
            (4, 9, "event-QA"),
        ]
        videos = {a.video for a in sets[0].questions}
        assert all(video.exists() and video.name.startswith("test-") for video in videos)
        assert len(videos) == 2  # seven kinds, none of them a needle in so few frames
        assert all(a.answer for s in sets for a in s.questions)
        first = [s.digest() for s in sets]
    assert not any(video.exists() for video in videos)
    with accuracy.event_qa((8, 4), 9, seed=3) as sets:
        assert [s.digest() for s in sets] == first
    with accuracy.event_qa((8,), 9, seed=4) as (other,):
        assert other.digest() not in first
    with (
        pytest.raises(ConfigError, match="2 frames or more, got 1"),
        accuracy.event_qa((8, 1), 9, seed=3),
    ):
        pass


def bench(folder: Path, out: Path, *more: str, **wrong: str) -> tuple[int, list[list[str]]]:
    """The exit status, and the texts that each of two servers received, in order."""
    with answering("plain") as (one, plain), answering("metok", **wrong) as (two, metok):
        options = ["bench", "--base-url", metok.url, "--baseline-url", plain.url, *SMALL]
        options += ["--result-dir", str(out), "--quality-folder", str(folder), *more]
        status = cli.main(options)
    return status, [[text_of(body) for body in server.bodies] for server in (one, two)]


def text_of(body: dict[str, Any]) -> str:
    content: Any = body["messages"][0]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def test_from_the_command_line_after_the_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "f")
    status, received = bench(folder, tmp_path / "out", How="four")
    assert status == 0
    for questions in received:
        # A warm-up, a round of two, then the questions.
        assert [len(text.split()) > 5 for text in questions] == [True] * 3 + [False] * 6
    captured = capsys.readouterr()
    result: dict[str, Any] = json.loads((tmp_path / "out" / "result.json").read_text())
    (quality,) = result["quality"]
    assert quality["accuracy"]["baseline"]["mean"] == 1
    assert quality["accuracy"]["server"]["mean"] == pytest.approx(2 / 3)
    assert result["kernels"]["red"] == {}
    assert result["refused"] is None
    (cell,) = result["cells"]
    assert cell["rounds"][0]["server"]["sent"] == 2
    assert cell["comparison"]["ratios"]
    assert "right, server, %" in captured.out


def test_no_ratio_where_a_question_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = bench(write_folder(tmp_path / "f"), tmp_path / "out", Is="refuse")
    assert status == 1
    (cell,) = json.loads((tmp_path / "out" / "result.json").read_text())["cells"]
    assert cell["comparison"]["refused"] == "questions failed: 2 of server"
    assert cell["comparison"]["ratios"] == {}
    assert "questions failed: 2 of server" in capsys.readouterr().out


def test_the_demo_is_asked_event_qa_and_has_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_sets: list[QuestionSet] = []
    flags: list[str] = []
    drawn = accuracy.event_qa

    @contextmanager
    def noting(*args: Any) -> Iterator[list[QuestionSet]]:
        with drawn(*args) as sets:
            drawn_sets.extend(sets)
            yield sets

    def pair(model: str, both: list[str], metok: list[str], **order: Any) -> Any:
        flags.extend(metok)
        raise CommandError("enough")

    monkeypatch.setattr(accuracy, "event_qa", noting)
    monkeypatch.setattr(servers, "pair", pair)
    own = ["--frames", "4", "8", "4", "--metok-flags", "--metok-config own.yaml"]
    options = ["bench", "--checkpoint", "demo", *own, "--result-dir", str(tmp_path)]
    assert cli.main(options) == 1
    assert [(s.frames, len(s.questions)) for s in drawn_sets] == [(4, 32), (8, 32)]
    # The last one counts.
    assert [flags[i + 1] for i, flag in enumerate(flags) if flag == "--metok-config"] == [
        str(CONFIG_FILE),
        "own.yaml",
    ]
