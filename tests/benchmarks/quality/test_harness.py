"""The measurement against a server with known answers, and the first-token divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metok_vllm.benchmarks.quality.divergence import first_token_kl
from metok_vllm.benchmarks.quality.harness import Answered, Cell, Serve, earlier_of, measure
from metok_vllm.benchmarks.quality.rows import Row, rows
from metok_vllm.benchmarks.quality.serving import running
from metok_vllm.benchmarks.quality.tables import tables
from metok_vllm.benchmarks.questions.prompts import ALL, CHOICE, FREE, VideoQuestion, read_folder
from metok_vllm.benchmarks.questions.request import messages_of
from metok_vllm.benchmarks.questions.settings import (
    DENSE,
    Setting,
    ablations,
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
# Both answer "Where?" rightly in different case; only dense answers "How many?" rightly.
DENSE_SAYS = {"Where?": " at sea", "How many?": "two"}
METOK_SAYS = {"Where?": "AT SEA.", "How many?": "three"}


def say(question: str, metok: dict[str, Any] | None) -> str:
    return (DENSE_SAYS if metok == {"enabled": False} else METOK_SAYS)[question]


def measured(
    folder: Path, server: CannedServer, settings: tuple[Setting, ...], frames: int = 8
) -> tuple[dict[str, list[Answered]], dict[tuple[str, str], Row]]:
    write_folder(folder, 3, QUESTIONS)
    questions = tuple(read_folder(folder, frames))
    cell = Cell(frames, questions, settings, {"scene": 0.5, "count": 0.25})
    with canned_server(server) as endpoint:
        batches = list(measure([cell], running(endpoint), GEOMETRY))
    answers = {setting.name: found for _, setting, found in batches}
    found = rows(batches)
    return answers, {(row.setting, row.kind): row for row in found}


def test_figures_of_known_answers(tmp_path: Path) -> None:
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
    scene, count = found["METok", "scene"].accuracy, found["METok", "count"].accuracy
    assert scene is not None
    assert count is not None
    assert (scene.mean, count.mean) == (1, 0)
    assert found["METok", "count"].chance == 0.25
    dense = found["dense", ALL]
    assert dense.accuracy is not None
    assert dense.agreement is not None
    assert (dense.accuracy.mean, dense.agreement.mean, dense.difference) == (1, 1, None)
    # Dense: 0.8 and 0.1, the rest 0.1; METok: 0.4 and 0.5, the rest 0.1.
    expected = 0.8 * math.log(0.8 / 0.4) + 0.1 * math.log(0.1 / 0.5)
    assert answers["METok"][0].kl == pytest.approx(expected)
    assert answers["dense"][0].kl == 0


def test_kv_and_flops_are_those_of_the_reports(tmp_path: Path) -> None:
    answers, found = measured(tmp_path, CannedServer(say), (DENSE, METOK, FEWER))
    metok, dense, half = (answers[name][0] for name in ("METok", "dense", "half"))
    visual = 8 * 16 + 1
    assert dense.kv_tokens == 12 * (visual + TEXT)
    assert metok.kv_tokens == 12 * TEXT + 2 * (visual // 4)  # two layers hold what was encoded
    per_token_layer = 2 * 2 * 32 * 4
    assert metok.kv_bytes == 15 * BLOCK * 2 * per_token_layer  # a block is of two layers
    assert (dense.kv_share, metok.kv_share) == (1, 0.25)
    assert (dense.flops_share, metok.flops_share) == (1, 0.2)
    # The share is relative to all frames, although the report's own dense count has half.
    assert (half.flops, half.flops_share) == (4000, 0.5)
    assert found["METok", ALL].kv_bytes == metok.kv_bytes


def test_forms_are_reported_apart(tmp_path: Path) -> None:
    """Choices hide what compression does: METok fails the free-form question alone."""
    free = {"question": "Which word?", "answer": "tea", "kind": "read"}
    choice = {**free, "choices": ["ice", "tea"]}

    def says(question: str, metok: dict[str, Any] | None) -> str:
        if question.endswith("Answer with the letter of the right choice."):
            return "B"
        return "tea" if metok == {"enabled": False} else "ten"

    write_folder(tmp_path, 2, [])
    listed = [{"video": f"{n}.mp4", **one} for n in range(2) for one in (free, choice)]
    (tmp_path / "questions.json").write_text(json.dumps(listed))
    cell = Cell(8, tuple(read_folder(tmp_path, 8)), (DENSE, METOK), {"read": 0.1})
    with canned_server(CannedServer(says)) as endpoint:
        batches = list(measure([cell], running(endpoint), GEOMETRY))
    found = {row.kind: row for row in rows(batches) if row.setting == "METok"}
    assert list(found) == [ALL, FREE, CHOICE, "read", "read, choice"]
    right = {kind: row.accuracy.mean for kind, row in found.items() if row.accuracy is not None}
    assert right == {ALL: 0.5, FREE: 0, CHOICE: 1, "read": 0, "read, choice": 1}
    chances = [found[kind].chance for kind in found]
    assert chances == pytest.approx([0.3, 0.1, 0.5, 0.1, 0.5])
    text = "\n".join(str(column.header) for column in tables(rows(batches))[1].columns)
    assert text == "setting\nfree-form\nmultiple choice\nread\nread, choice"


def test_the_requests(tmp_path: Path) -> None:
    server = CannedServer(say)
    measured(tmp_path, server, (DENSE, METOK, FEWER), frames=16)
    dense, metok, half = (server.bodies[start : start + 6] for start in (0, 6, 12))
    assert all("logprob_token_ids" not in body for body in dense)
    # The others are compared at dense's most likely tokens.
    assert all(body["logprob_token_ids"] == [7, 8] for body in (*metok, *half))
    assert {str(body["metok"]) for body in metok} == {"{'preset': 'balanced'}"}
    assert {(body["temperature"], body["max_tokens"], body["top_logprobs"]) for body in dense} == {
        (0, 16, 20)
    }
    frames = [{b["media_io_kwargs"]["video"]["num_frames"] for b in part} for part in (dense, half)]
    assert frames == [{16}, {4}]  # the clips have eight frames


def test_an_unreadable_video_is_a_failed_question(tmp_path: Path) -> None:
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


def test_a_server_without_metok_fails(tmp_path: Path) -> None:
    answers, found = measured(tmp_path, CannedServer(say, report=False), (DENSE, METOK))
    assert found["METok", ALL].failed == 6
    assert found["METok", ALL].agreement is None
    assert "does not run METok" in (answers["dense"][0].error or "")


def test_settings_with_equal_server_fields_share_a_server(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, QUESTIONS)
    questions = tuple(read_folder(tmp_path, 8))
    apart = {"pruning_layers": [4, 6, 8]}
    settings = (
        DENSE,
        Setting("deep", "METok", {}, server=apart),
        METOK,
        Setting("deep max", "METok", {"preset": "max"}, server=apart),
    )
    started = []
    with canned_server(CannedServer(say)) as endpoint:
        inner = running(endpoint)

        def serve(fields: Any) -> Any:
            started.append(dict(fields))
            return inner({})

        counted: Serve = serve
        cells = [Cell(8, questions, settings), Cell(16, questions, settings)]
        order = [(c.frames, s.name) for c, s, _ in measure(cells, counted, GEOMETRY)]
    assert started == [{}, apart]
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
    questions = tuple(read_folder(tmp_path, 8))
    with canned_server(CannedServer(say)) as endpoint:
        serve = running(endpoint)
        with pytest.raises(ConfigError, match="first setting must be dense"):
            list(measure([Cell(8, questions, (METOK, DENSE))], serve, None))
        other = Setting("x", "x", server={"alignment_mode": "none"})
        with pytest.raises(ConfigError, match="alignment_mode: fixed when a server starts"):
            list(measure([Cell(8, questions, (DENSE, other))], serve, None))


Shares = list[float]
VOCABULARY = 8


@st.composite
def distributions(draw: st.DrawFn) -> Shares:
    weights = draw(st.lists(st.floats(0.001, 1), min_size=VOCABULARY, max_size=VOCABULARY))
    return [weight / sum(weights) for weight in weights]


def kl(p: Shares, q: Shares) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def likeliest(p: Shares, count: int) -> list[int]:
    return sorted(range(len(p)), key=lambda token: -p[token])[:count]


def logs(p: Shares, tokens: list[int]) -> dict[int, float]:
    return {token: math.log(p[token]) for token in tokens}


@settings(deadline=None)
@given(p=distributions(), q=distributions(), count=st.integers(1, VOCABULARY))
def test_named_tokens_and_one_bucket(p: Shares, q: Shares, count: int) -> None:
    tokens = likeliest(p, count)
    rest = [token for token in range(VOCABULARY) if token not in tokens]
    merged = [[*(s[t] for t in tokens), sum(s[t] for t in rest)] for s in (p, q)]
    if not rest:
        merged = [s[:-1] for s in merged]
    found = first_token_kl(logs(p, tokens), logs(q, tokens))
    assert found == pytest.approx(kl(*merged), abs=1e-6)
    assert found <= kl(p, q) + 1e-6


@settings(deadline=None)
@given(p=distributions(), q=distributions(), count=st.integers(1, VOCABULARY))
def test_tokens_that_are_not_named_never_raise_it(p: Shares, q: Shares, count: int) -> None:
    found = first_token_kl(logs(p, likeliest(p, count)), logs(q, likeliest(q, count)))
    assert -1e-12 <= found <= kl(p, q) + 1e-6


def test_a_probability_of_nothing_is_finite() -> None:
    assert math.isfinite(first_token_kl({1: math.log(0.5)}, {1: -9999.0}))
    with pytest.raises(ValueError, match="without tokens"):
        first_token_kl({}, {1: 0.0})


def test_earlier_questions_are_others_about_the_same_video() -> None:
    """A conversation: the video comes once, earlier questions with their right answers."""
    videos = [Path("a.mp4"), Path("b.mp4")]
    questions = [
        VideoQuestion(video, video.name, f"{video.stem}{n}?", "scene", f"{n}", 8)
        for n in range(3)
        for video in videos
    ]
    earlier = earlier_of(questions, 4, 2)
    assert [question.question for question in earlier] == ["a0?", "a1?"]
    assert earlier_of(questions, 0, 0) == []


def test_the_messages_of_a_conversation(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"film")
    first, second = (VideoQuestion(video, "a.mp4", f"{n}?", "scene", f"{n}!", 8) for n in "12")
    asked, answer, again = messages_of([first, second])
    assert [part["type"] for part in asked["content"]] == ["video_url", "text"]
    assert answer == {"role": "assistant", "content": "1!"}
    assert again == {"role": "user", "content": [{"type": "text", "text": "2?"}]}
