"""Clients that can only name a model, drop unknown fields, or send a video as they please."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from metok_vllm.config.presets import PRESETS
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.conftest import IMAGE_RUN
from tests.conformance.requests import MODEL, chat_body, is_envelope, messages, post, video_part
from tests.video import clips

pytestmark = pytest.mark.slow

QUESTION = "What is in the black scene?"
HOURS = 2.5


def ask(client: OpenAI, model: str, *parts: dict[str, Any], **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages(QUESTION, *(parts or (video_part(),))),
        max_tokens=8,
        temperature=0,
        **more,
    )


def pictures(count: int) -> list[bytes]:
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(clips.picture(number, 64, 48)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def image_part(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


class TestAliases:
    def test_they_are_listed_behind_the_model(self, client: OpenAI) -> None:
        first, *others = client.models.list().data
        assert first.id == MODEL
        assert {model.id for model in others} == {f"{MODEL}:{preset}" for preset in PRESETS}
        facts = [model.model_dump() for model in others]
        assert {(fact["parent"], fact["root"]) for fact in facts} == {
            (MODEL, first.model_dump()["root"])
        }

    @pytest.mark.parametrize("preset", PRESETS)
    def test_a_name_is_its_preset_and_is_answered_as_asked(
        self, client: OpenAI, preset: str
    ) -> None:
        raw = ask(client, f"{MODEL}:{preset}")
        answer, plain = raw.parse(), ask(client, MODEL, extra_body={"metok": {"preset": preset}})
        assert answer.model == f"{MODEL}:{preset}"
        assert answer.metok == plain.parse().metok
        assert answer.choices[0].message == plain.parse().choices[0].message
        assert plain.parse().model == MODEL
        tokens = answer.metok["visual_tokens"]
        for headers in (raw.headers, plain.headers):
            assert headers["x-metok-preset"] == preset
            assert headers["x-metok-visual-tokens"] == f"{tokens['encoded']}/{tokens['dense']}"

    def test_a_stream_has_name_headers_and_settings(self, client: OpenAI) -> None:
        extra = {"metok": {"num_events": 3}}
        raw = ask(client, f"{MODEL}:max", stream=True, extra_body=extra)
        assert raw.headers["x-metok-preset"] == "max"
        chunks = list(raw.parse())
        assert {chunk.model for chunk in chunks} == {f"{MODEL}:max"}
        report = chunks[-1].metok
        assert (report["applied"], report["preset"], len(report["events"])) == (True, "max", 3)
        kept, dense = (report["visual_tokens"][key] for key in ("encoded", "dense"))
        assert raw.headers["x-metok-visual-tokens"] == f"{kept}/{dense}"

    def test_other_names_and_contradictions(self, client: OpenAI, server: ChildServer) -> None:
        for name in (f"{MODEL}:best", "other:max", f"{MODEL}:"):
            with pytest.raises(NotFoundError):
                ask(client, name)
        with pytest.raises(BadRequestError, match="contradicts"):
            ask(client, f"{MODEL}:off", extra_body={"metok": {"enabled": True}})
        body = {"model": f"{MODEL}:max", "prompt": "Hello", "max_tokens": 1}
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert f"for {MODEL}" in is_envelope(response, 400)

    def test_without_a_video_there_are_no_headers(self, client: OpenAI) -> None:
        raw = ask(client, MODEL, image_part(pictures(1)[0]))
        assert not [name for name in raw.headers if name.startswith("x-metok")]


@pytest.mark.parametrize("stream", [False, True])
def test_settings_without_a_video_are_answered(client: OpenAI, stream: bool) -> None:
    part = image_part(pictures(1)[0])
    raw = ask(client, MODEL, part, stream=stream, extra_body={"metok": {"preset": "max"}})
    last = list(raw.parse())[-1] if stream else raw.parse()
    assert last.metok == {"applied": False, "reason": "no video in the request"}
    assert last.choices[0].metok == last.metok


class TestRunsOfImages:
    def test_a_run_is_the_video_of_the_same_frames(self, client: OpenAI) -> None:
        frames = pictures(9)
        joined = ",".join(base64.b64encode(frame).decode() for frame in frames)
        video = ask(client, MODEL, video_part("data:video/jpeg;base64," + joined)).parse()
        run = ask(client, MODEL, *map(image_part, frames)).parse()
        assert run.choices[0].message == video.choices[0].message
        assert run.usage == video.usage
        assert (run.metok["source"], video.metok["source"]) == ("images", "video")
        spans = [(event["start_frame"], event["end_frame"]) for event in run.metok["events"]]
        assert spans == [(event["start_s"], event["end_s"]) for event in video.metok["events"]]
        assert all("start_s" not in event for event in run.metok["events"])

    def test_fewer_images_are_images(self, client: OpenAI) -> None:
        answer = ask(client, MODEL, *map(image_part, pictures(IMAGE_RUN - 1))).parse()
        assert "metok" not in answer.model_extra

    def test_a_run_has_the_limits_of_a_video(self, server: ChildServer) -> None:
        parts = list(map(image_part, pictures(IMAGE_RUN)))
        other = io.BytesIO()
        Image.new("RGB", (20, 20)).save(other, "PNG")
        sizes = post(server, chat_body("What?", *parts, image_part(other.getvalue())))
        assert "same size" in is_envelope(sizes, 422)
        many = post(server, chat_body("What?", *parts * 33))
        assert "--metok-media-max-frames" in is_envelope(many, 413)
        broken = post(server, chat_body("What?", *parts, image_part(b"no picture")))
        is_envelope(broken, 422)
        private = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}
        assert "private" in is_envelope(post(server, chat_body("What?", *parts, private)), 400)


@pytest.mark.parametrize("inside", [True, False])
def test_a_video_part_may_say_its_number_of_frames(client: OpenAI, inside: bool) -> None:
    """As VLMEvalKit sends it: extra keys of its message beside the URL."""
    more = {"nframe": 8, "min_pixels": 3136, "max_pixels": 50_176}
    part = video_part()
    (part["video_url"] if inside else part).update(more)
    answer = ask(client, MODEL, part, video_part()).parse()
    assert answer.metok["visual_tokens"]["dense"] == 8 * 16 + 1 + 32 * 16 + 1
    rate = video_part()
    rate["video_url"]["fps"] = 0.1
    assert ask(client, MODEL, rate).parse().metok["visual_tokens"]["dense"] == 6 * 16 + 1


@pytest.mark.parametrize("value", [0, 129, "8", 2.5])
def test_a_wrong_number_of_frames_is_named(server: ChildServer, value: Any) -> None:
    part = video_part()
    part["video_url"]["nframe"] = value
    response = post(server, chat_body("What?", part))
    assert "num_frames" in is_envelope(response, 400)
    assert response.json()["error"]["param"] == "video_url"


def test_hours_of_video_below_the_allowed_folder(
    client: OpenAI, server: ChildServer, media_root: Path
) -> None:
    times = range(0, int(HOURS * 3600) * 1000, 2500)
    film = clips.encode(size=(32, 24), times_ms=times, options={"preset": "ultrafast", "crf": "45"})
    (media_root / "film.mp4").write_bytes(film)
    url = f"file://{media_root}/film.mp4"
    report = ask(client, MODEL, video_part(url)).parse().metok
    assert report["events"][-1]["end_s"] == pytest.approx(HOURS * 3600, abs=3)
    assert report["visual_tokens"]["dense"] == 513
    sent = "data:video/mp4;base64," + base64.b64encode(film).decode()
    message = is_envelope(post(server, chat_body("What?", video_part(sent))), 413)
    assert "9000 s" in message
    assert "--metok-media-max-duration-s" in message
