"""A client's media ids: they cannot name other clients' media, and a salt separates tenants.

Also the next request after a refused one, which shares vLLM's caches with it.
"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import as_url, chat_body, is_envelope, metric, post, video_part
from tests.conformance.test_bad_input import one_pixel_frames
from tests.video import clips

pytestmark = pytest.mark.slow


def url_of(frames: int, side: int = 64) -> str:
    return as_url(clips.encode(num_frames=frames, size=(side, 48)))


SHORT, LONG = url_of(9), url_of(20, 96)


def named(name: str, url: str | None = None) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url} if url else None, "uuid": name}


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def prompt_tokens(server: ChildServer, text: str, part: dict[str, Any], **more: Any) -> int:
    response = post(server, chat_body(text, part, **more))
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens"])


def test_a_name_alone_stands_for_the_media_for_any_question(server: ChildServer, name: str) -> None:
    dense = {"metok": {"enabled": False}}
    tokens = prompt_tokens(server, "Which?", named(name, LONG), **dense)
    assert prompt_tokens(server, "Which?", named(name), **dense) == tokens
    again = post(server, chat_body("What else is there?", named(name)))
    assert again.status_code == 200
    assert len(again.json()["metok"]["events"]) > 0
    assert again.json()["metok"]["visual_tokens"]["dense"] == 20 * 16 + 1


def test_an_unknown_name(server: ChildServer, name: str) -> None:
    assert "uuid" in is_envelope(post(server, chat_body("Which?", named(name))), 400)


def test_another_tenant_does_not_have_it(server: ChildServer, name: str) -> None:
    mine, theirs = {"cache_salt": "tenant-a"}, {"cache_salt": "tenant-b"}
    prompt_tokens(server, "Which?", named(name, LONG), **mine)
    is_envelope(post(server, chat_body("Which?", named(name), **theirs)), 400)
    is_envelope(post(server, chat_body("Which?", named(name))), 400)
    own = prompt_tokens(server, "Which?", video_part(SHORT), **theirs)
    assert prompt_tokens(server, "Which?", named(name, SHORT), **theirs) == own
    kept = prompt_tokens(server, "Which?", named(name), **mine)
    assert kept == prompt_tokens(server, "Which?", video_part(LONG), **mine)


def hits(server: ChildServer) -> dict[str, float]:
    """Videos whose frames and features an earlier request left."""
    names = ("metok_frame_cache_hits_total", "metok_feature_cache_hits_total")
    return {name: metric(server, name) for name in names}


def test_tenants_share_no_cache(server: ChildServer, name: str) -> None:
    """Otherwise a fast answer would reveal that another tenant has sent the video."""
    before = hits(server)
    for number, salt in enumerate((f"a{name}", f"b{name}", None)):
        prompt_tokens(server, f"{number}? {name}", video_part(LONG), cache_salt=salt)
    first = hits(server)
    assert first["metok_frame_cache_hits_total"] <= before["metok_frame_cache_hits_total"] + 1
    assert first["metok_feature_cache_hits_total"] <= before["metok_feature_cache_hits_total"] + 1
    prompt_tokens(server, f"Again? {name}", video_part(LONG), cache_salt=f"a{name}")
    assert hits(server) == {key: value + 1 for key, value in first.items()}


def test_what_is_sent_is_what_is_answered_about(server: ChildServer, name: str) -> None:
    """A name given to other media before changes nothing, and stands for the new ones after."""
    prompt_tokens(server, "Which?", named(name, LONG))
    own = prompt_tokens(server, "Which?", video_part(SHORT))
    assert prompt_tokens(server, "Which?", named(name, SHORT)) == own
    assert prompt_tokens(server, "Which?", named(name)) == own


def test_a_name_cannot_be_another_videos_identity(server: ChildServer, name: str) -> None:
    """A uuid that is a hash, or a URL of ours, is a name like any other."""
    own = prompt_tokens(server, "Which?", video_part(SHORT))
    for made in ("0" * 64, "metok-find:00:ab", "data:video/mp4;base64,AAAA"):
        assert prompt_tokens(server, "Which?", named(made + name, SHORT)) == own
    for url in ("metok-find:00:" + "0" * 64, "metok-keep:00:ab," + SHORT):
        is_envelope(post(server, chat_body("Which?", video_part(url))), 400)


def test_images_too(server: ChildServer, name: str) -> None:
    url = "data:image/jpeg;base64," + one_pixel_frames().rpartition(",")[2]
    part = {"type": "image_url", "image_url": {"url": url}, "uuid": name}
    assert post(server, chat_body("Which?", part)).status_code == 200
    alone = {"type": "image_url", "image_url": None, "uuid": name}
    assert post(server, chat_body("Which?", alone)).status_code == 200
    is_envelope(post(server, chat_body("Which?", named(name))), 400)


REFUSED: list[dict[str, Any]] = [
    {"temperature": -1},
    {"top_p": 2},
    {"n": 0},
    {"logit_bias": {"999999999": 1}},
    {"min_tokens": 99},
    {"stop_token_ids": [10**9]},
    {"allowed_token_ids": [10**9]},
    {"bad_words": [""]},
    {"structured_outputs": {"regex": "("}},
    {"response_format": {"type": "json_schema"}},
    {"truncate_prompt_tokens": 1},
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: next(iter(value)))
def test_a_refused_request_does_not_break_the_next(
    server: ChildServer, name: str, value: dict[str, Any]
) -> None:
    good = chat_body(f"What is it? {name}", video_part(SHORT))
    assert 400 <= post(server, {**good, **value}).status_code < 500
    response = post(server, good)
    assert response.status_code == 200, response.text
    again = chat_body(f"What was it? {name}", video_part(SHORT), stream=True)
    post(server, {**again, **value})
    assert '"error"' not in post(server, again).text


WRONG_TYPES: list[dict[str, Any]] = [
    {"type": "video_url", "video_url": {"url": 1}, "uuid": "u"},
    {"type": "video_url", "video_url": {"url": ["a"]}},
    {"type": "video_url", "video_url": 7, "uuid": "u"},
    {"type": False, "video_url": {"url": SHORT}, "uuid": "u"},
    {"type": {"x": 1}, "video_url": {"url": SHORT}, "uuid": "u"},
    {"type": "video_url", "video_url": {"url": SHORT}, "uuid": {"a": 1}},
]


@pytest.mark.parametrize("part", WRONG_TYPES)
def test_content_parts_of_wrong_types(server: ChildServer, part: dict[str, Any]) -> None:
    is_envelope(post(server, chat_body("What?", part)), 400)


@pytest.mark.parametrize("field", ["structured_outputs", "response_format", "tools", "logit_bias"])
@pytest.mark.parametrize("value", [" ", 5, [5], True])
def test_options_of_wrong_types(server: ChildServer, field: str, value: Any) -> None:
    body = chat_body("What?", **{field: value})
    is_envelope(post(server, body), 400)
    is_envelope(httpx.post(f"{server.url}/invocations", json=body, timeout=60), 400)


def test_a_question_and_its_film_in_two_messages(server: ChildServer) -> None:
    text = {"type": "text", "text": "What is in the black scene?"}
    snapshot = {"type": "text", "text": "Current time: Sunday, 12:30. Battery: 80 %."}

    def relevance(*contents: list[dict[str, Any]]) -> list[float]:
        body = chat_body("", metok={"num_events": 6, "key_event_ratio": 0.5})
        body["messages"] = [{"role": "user", "content": content} for content in contents]
        report = post(server, body).json()["metok"]
        assert report["query_source"] == "user_turn"
        return [event["relevance"] for event in report["events"]]

    together = relevance([video_part(), text])
    assert relevance([text], [video_part()]) == together
    assert relevance([video_part()], [text]) == together
    alone = relevance([video_part(), snapshot])
    assert relevance([video_part(), text], [snapshot]) not in (alone, together)


def test_beam_search_prunes_nothing_and_says_so(server: ChildServer) -> None:
    body = chat_body("Which?", video_part(LONG), use_beam_search=True, n=2, max_tokens=3)
    response = post(server, body)
    assert response.status_code == 200, response.text
    report = response.json()["metok"]
    assert (report["unpruned"], report["stages"]) == ("beam_search", [1])
    assert len(response.json()["choices"]) == 2
    refused = post(server, {**body, "metok": {"rule": "fastv"}})
    assert "beam search" in is_envelope(refused, 400)
