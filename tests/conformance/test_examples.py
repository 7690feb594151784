"""The programs of examples/ that need a server, against the served demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metok_vllm.demo import QUESTIONS, SAMPLE_VIDEO
from metok_vllm.processes.child_server import ChildServer
from tests.examples.programs import run_example

pytestmark = pytest.mark.slow


def test_chat_about_a_video(server: ChildServer) -> None:
    first, second = QUESTIONS[0], QUESTIONS[2]
    done = run_example(
        "chat_about_video.py",
        *(str(SAMPLE_VIDEO), "--base-url", f"{server.url}/v1", "--preset", "max"),
        stdin=f"{first.question}\n\n{second.question}\n",
    )
    lines = done.stdout.splitlines()
    saved = "  [280 of 513 visual tokens]"
    # The demo model is trained on single questions: its second answer is not judged.
    assert lines[:2] == [first.answer, saved]
    assert lines[3:] == [saved]


def test_a_folder_is_answered_once(server: ChildServer, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(SAMPLE_VIDEO.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    entries = [{"video": "a.mp4", "question": q, "answer": a} for q, a in QUESTIONS[:3]]
    broken = {"video": "broken.mp4", "question": "What is it?"}
    (tmp_path / "questions.json").write_text(json.dumps([*entries, broken]))
    out = tmp_path / "answers.jsonl"
    options = (str(tmp_path), "--out", str(out), "--base-url", f"{server.url}/v1")

    done = run_example("batch_folder.py", *options, status=1)
    assert "broken.mp4: Error code: 422" in done.stderr
    assert done.stdout.splitlines()[0] == "0 of 4 are answered already"
    found = {line["question"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert {q: line["model_answer"] for q, line in found.items()} == dict(QUESTIONS[:3])
    assert all(line["answer"] == line["model_answer"] for line in found.values())
    assert {line["visual_tokens"]["encoded"] for line in found.values()} == {400}

    # Stopped while it wrote the last line: that question alone is asked again.
    whole = out.read_text()
    out.write_text(whole[:-20])
    (tmp_path / "broken.mp4").write_bytes(SAMPLE_VIDEO.read_bytes())
    done = run_example("batch_folder.py", *options)
    assert done.stdout.splitlines()[0] == "2 of 4 are answered already"
    lines = out.read_text().splitlines()
    assert lines[:2] == whole.splitlines()[:2]
    assert len({json.loads(line)["question"] for line in lines}) == len(lines) == 4
