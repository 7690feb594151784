"""Workloads: reproducible, and without content that a server has cached."""

from __future__ import annotations

import base64
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.client.endpoint import BenchRequest
from metok_vllm.benchmarks.client.videos import Clip, encode
from metok_vllm.benchmarks.client.workloads import WorkloadSettings, workload
from metok_vllm.errors import ConfigError
from metok_vllm.video import MediaLimits, probe


def take(count: int, **settings: Any) -> list[BenchRequest]:
    """Requests with tiny media."""
    small = {"width": 32, "height": 32, "frames": (2,), "video_fps": 1}
    return list(islice(workload(WorkloadSettings(**{**small, **settings})), count))


def parts(request: BenchRequest) -> list[dict[str, Any]]:
    (message,) = request.body["messages"]
    assert message["role"] == "user"
    content: list[dict[str, Any]] = message["content"]
    return content


def media(request: BenchRequest) -> bytes:
    part = parts(request)[0]
    return base64.b64decode(part[part["type"]]["url"].partition("base64,")[2], validate=True)


def question(request: BenchRequest) -> str:
    text: str = parts(request)[-1]["text"]
    return text


MIXED: dict[str, Any] = {"text_share": 0.4, "image_share": 0.2, "questions_per_video": 2}


def test_the_same_settings_give_the_same_bytes() -> None:
    assert take(30, **MIXED) == take(30, **MIXED)
    first, other = take(30, **MIXED), take(30, **MIXED, seed=1)
    assert not {json.dumps(r.body) for r in first} & {json.dumps(r.body) for r in other}


def test_the_fields_of_a_request() -> None:
    video, image, text = (
        take(1, max_tokens=7, **share)[0]
        for share in ({}, {"image_share": 1.0}, {"text_share": 1.0})
    )
    for request in (video, image, text):
        wanted = {"max_tokens": 7, "ignore_eos": True, "temperature": 0}
        assert wanted.items() <= request.body.items()
        assert "stream" not in request.body
    assert (video.kind, image.kind, text.kind) == ("video", "image", "text")
    assert video.body["media_io_kwargs"] == {"video": {"num_frames": 2}}
    assert [part["type"] for part in parts(video)] == ["video_url", "text"]
    assert [part["type"] for part in parts(image)] == ["image_url", "text"]
    assert [part["type"] for part in parts(text)] == ["text"]
    assert len(question(text).split()) == WorkloadSettings().text_words
    for request in (image, text):
        assert "media_io_kwargs" not in request.body
        assert (request.frames, request.video_seconds) == (0, 0)


def test_lengths_are_those_of_the_video_sent() -> None:
    requests = take(12, frames=(3, 8), video_fps=4, seconds_per_frame=0.5, clips=("static",))
    assert {request.frames for request in requests} == {3, 8}
    for request in requests:
        found = probe(media(request), MediaLimits())
        assert found.num_frames == request.frames * 2
        assert found.duration_s == pytest.approx(request.video_seconds)
        assert request.video_seconds == request.frames / 2


def test_no_video_picture_or_text_comes_twice() -> None:
    sweep = [take(25, text_share=0.3, image_share=0.3, frames=(n,)) for n in (2, 3)]
    requests = [request for workload in sweep for request in workload]
    contents = [media(r) if r.kind != "text" else question(r).encode() for r in requests]
    assert len(set(contents)) == len(requests)
    assert len({request.key for request in requests}) == len(requests)


def test_several_questions_about_a_video_in_turn() -> None:
    requests = take(12, questions_per_video=3, videos_in_turn=2)
    order = [(media(request), request.question) for request in requests]
    a, b, c, d = (order[index][0] for index in (0, 1, 6, 7))
    assert len({a, b, c, d}) == 4
    assert order[:6] == [(a, 0), (b, 0), (a, 1), (b, 1), (a, 2), (b, 2)]
    assert order[6:] == [(c, 0), (d, 0), (c, 1), (d, 1), (c, 2), (d, 2)]
    for video in (a, b, c, d):
        assert len({question(r) for r in requests if media(r) == video}) == 3


def test_no_conversation_about_a_video_repeats_a_question() -> None:
    """Catches turns of the next conversation that the last one asked: a cache would answer both."""
    for requests in (take(6, turns=3, questions_per_video=2), take(12, turns=3, reuse_share=0.5)):
        asked: dict[bytes, list[str]] = {}
        for request in requests:
            assert request.turns == 3
            asked.setdefault(media(request), []).extend((question(request), *request.later))
        assert max(map(len, asked.values())) > 3
        for questions in asked.values():
            assert len(set(questions)) == len(questions)
    assert [r.later for r in take(3)] == [()] * 3


def test_reused_videos_have_the_bytes_of_the_first_request() -> None:
    """Catches a pool whose videos are drawn anew, and keys that two requests share."""
    requests = take(20, reuse_share=0.8, reuse_pool=2)
    seen: set[bytes] = set()
    for request in requests:
        assert (media(request) in seen) == bool(request.question)
        seen.add(media(request))
    assert len(seen) == 4
    assert len({request.key for request in requests}) == 20


def test_shares_of_text_and_images() -> None:
    kinds = Counter(request.kind for request in take(1000, **MIXED))
    assert kinds["text"] == pytest.approx(400, abs=40)  # 2.6 standard deviations
    assert kinds["image"] == pytest.approx(200, abs=33)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"frames": (8, 0)}, "got 0"),
        ({"clips": ("cut",)}, "cut"),
        ({"questions_per_video": 0}, "questions_per_video .* got 0"),
        ({"max_tokens": 0}, "max_tokens .* got 0"),
        ({"width": 33}, "width must be even, got 33"),
        ({"seconds_per_frame": 0.1}, "seconds_per_frame .* got 0.1"),
        ({"seconds_per_frame": float("nan")}, "seconds_per_frame .* got nan"),
        ({"text_share": 0.7, "image_share": 0.4}, "0.7, 0.4"),
        ({"image_share": float("nan")}, "nan"),
        ({"turns": 0}, "turns .* got 0"),
        ({"reuse_share": 1.0}, "reuse_share .* got 1.0"),
        ({"reuse_share": 0.5, "questions_per_video": 2}, "reuse_share replaces"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WorkloadSettings(**settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, frames in enumerate((4, 20, 30)):
        clip = Clip("static", (number,), frames, fps=2, width=32, height=32)
        (tmp_path / f"{number}.mp4").write_bytes(encode(clip))
    (tmp_path / "notes.txt").write_text("no video")
    return tmp_path


def test_the_users_own_videos(folder: Path) -> None:
    requests = take(12, folder=folder, frames=(16,), questions_per_video=2)
    files = {(folder / f"{number}.mp4").read_bytes(): number for number in range(3)}
    numbers = [files[media(request)] for request in requests]
    assert numbers[::2] == numbers[1::2], "two questions about each"
    assert set(numbers[:6]) == set(numbers[6:]) == {0, 1, 2}
    for request, number in zip(requests, numbers, strict=True):
        frames = (4, 20, 30)[number]
        assert request.frames == min(frames, 16)
        assert request.body["media_io_kwargs"]["video"]["num_frames"] == request.frames
        assert request.video_seconds == pytest.approx(frames / 2)
    # A new id for each repetition, so that vLLM's caches do not match.
    names = [parts(request)[0]["uuid"] for request in requests]
    assert names[::2] == names[1::2]
    longer = take(6, folder=folder, frames=(20,))
    assert len({*names, *(parts(request)[0]["uuid"] for request in longer)}) == 6 + 6
