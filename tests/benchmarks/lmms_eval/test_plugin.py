"""What `metok` adds to lmms-eval's requests, and the functions of the task, without lmms-eval."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.lmms_eval import plugin
from metok_vllm.benchmarks.lmms_eval.task import utils
from metok_vllm.demo import SAMPLE_VIDEO


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("", None),
        (None, None),
        ("off", {"enabled": False}),
        (False, {"enabled": False}),
        ("max", {"preset": "max"}),
        ('{"preset": "max", "num_events": 6}', {"preset": "max", "num_events": 6}),
        ({"decode_keep": 0.5}, {"decode_keep": 0.5}),
    ],
)
def test_settings_of_a_model_argument(argument: object, settings: dict[str, Any] | None) -> None:
    assert plugin.request_settings(argument) == settings


@pytest.mark.parametrize("argument", [3, True, "{not json"])
def test_other_arguments_are_refused(argument: object) -> None:
    with pytest.raises(ValueError, match=r"metok=|Expecting"):
        plugin.request_settings(argument)


def payload(url: str) -> dict[str, Any]:
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "Which?"},
    ]
    media = {"video": {"num_frames": 64}}
    return {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "extra_body": {"media_io_kwargs": media},
    }


def test_a_file_is_sent_as_a_data_url(tmp_path: Path) -> None:
    video = tmp_path / "a clip.mp4"
    video.write_bytes(SAMPLE_VIDEO.read_bytes())
    sent = payload(f"file://{tmp_path}/a%20clip.mp4")
    body = plugin.request_body(sent, {"preset": "max"}, inline=True)
    url = body["messages"][0]["content"][0]["video_url"]["url"]
    head, data = url.split(",")
    assert head == "data:video/mp4;base64"
    assert base64.b64decode(data) == SAMPLE_VIDEO.read_bytes()
    assert body["extra_body"]["metok"] == {"preset": "max"}
    assert body["extra_body"]["media_io_kwargs"] == {"video": {"num_frames": 64}}
    assert sent["messages"][0]["content"][0]["video_url"]["url"].startswith("file://")
    assert plugin.question_of(body) == "Which?"


@pytest.mark.parametrize("url", ["https://example.org/a.mp4", "data:video/mp4;base64,AAAA"])
def test_other_addresses_are_sent_as_they_are(url: str) -> None:
    sent = payload(url)
    assert plugin.request_body(sent, None, inline=True) == sent
    local = payload("file:///a.mp4")
    assert plugin.request_body(local, None, inline=False) == local


@pytest.mark.parametrize(
    ("status", "final"), [(404, True), (413, True), (429, False), (503, False)]
)
def test_which_refusals_end_a_run(status: int, final: bool) -> None:
    assert plugin.is_refusal(status) is final


@pytest.mark.parametrize(
    ("report", "settings", "reason"),
    [
        ({"preset": "max"}, {"preset": "max"}, None),
        ({"applied": True}, None, None),
        (None, None, "no metok object"),
        ({"applied": False, "reason": "no video"}, {"preset": "max"}, "not applied: no video"),
        ({"applied": False, "reason": "no video"}, None, "not applied: no video"),
        ({"applied": False, "reason": "off"}, {"enabled": False}, None),
        ({"applied": False, "reason": "off"}, {"preset": "off"}, None),
    ],
)
def test_answers_that_do_not_measure_the_settings(
    report: dict[str, Any] | None, settings: dict[str, Any] | None, reason: str | None
) -> None:
    found = plugin.unusable(report, settings)
    assert found is None if reason is None else reason in str(found)


def test_every_function_of_the_task_exists() -> None:
    file = Path(utils.__file__).with_name("metok_folder.yaml").read_text(encoding="utf-8")
    names = re.findall(r"!function utils\.(\w+)", file)
    assert len(names) == 6
    assert [name for name in names if not hasattr(utils, name)] == []


def test_scores_of_the_task() -> None:
    docs: list[dict[str, Any]] = [
        {"video": "a.mp4", "question": "Which?", "answer": "red", "kind": "detail"},
        {"video": "a.mp4", "question": "How many?", "answer": "two", "kind": None},
        {"video": "a.mp4", "question": "How many?", "answer": "two", "choices": ["one", "two"]},
    ]
    texts = ["Red.", "1", "B."]
    scored = [utils.process_results(doc, [text]) for doc, text in zip(docs, texts, strict=True)]
    assert [one["accuracy"] for one in scored] == [1, 0, 1]
    kinds = [one["by_kind"]["kind"] for one in scored]
    assert kinds == ["detail", "question", "question, choice"]
    assert utils.by_kind([one["by_kind"] for one in scored]) == pytest.approx(2 / 3)
    assert utils.doc_to_text(docs[0]) == "Which?"
    assert utils.doc_to_visual(docs[0]) == [str(Path.cwd() / "a.mp4")]
