"""Media parts reach vLLM in one form, without the names that clients give them."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.content_parts import checked_messages, named_media
from metok_vllm.server.media.named import keep_url, named_url

URL = "data:video/mp4;base64,AAAA"
TEXT = {"type": "text", "text": "What?"}


def checked(part: Any, tenant: str = "t") -> Any:
    messages = [{"role": "user", "content": [TEXT, part], "name": "n"}]
    (message,) = checked_messages(messages, tenant)
    assert message["content"][0] == TEXT
    assert (message["role"], message["name"]) == ("user", "n")
    return message["content"][1]


@pytest.mark.parametrize("value", [URL, {"url": URL}])
@pytest.mark.parametrize("kind", [{"type": "video_url"}, {"type": None}, {}])
def test_named_with_data(value: Any, kind: dict[str, Any]) -> None:
    kept = keep_url("t", "video", "mine", URL)
    want = {"type": "video_url", "video_url": {"url": kept}}
    assert checked({**kind, "video_url": value, "uuid": "mine"}) == want


@pytest.mark.parametrize("value", [None, {"url": None}, {}, "", {"url": ""}])
def test_named_alone(value: Any) -> None:
    part = checked({"type": "image_url", "image_url": value, "uuid": "mine"})
    assert part == {"type": "image_url", "image_url": {"url": named_url("t", "image", "mine")}}


def test_without_a_name_parts_stay_as_they_are() -> None:
    part = {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}
    assert checked(part) == part
    assert checked({"type": "video_url", "video_url": URL}) == {
        "type": "video_url",
        "video_url": {"url": URL},
    }
    # Without a type, vLLM reads the part and then fails over it.
    for untyped in ({"video_url": {"url": URL}}, {"type": None, "video_url": URL}):
        assert checked(untyped) == {"type": "video_url", "video_url": {"url": URL}}
    for other in ({"type": "input_audio", "input_audio": {"data": "AA"}}, TEXT, "words", None):
        assert checked(other) == other


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video_url", "video_url": {"url": 1}}, "video_url"),
        ({"type": "video_url", "video_url": ["a"]}, "video_url"),
        ({"type": "video_url", "video_url": None}, "video_url"),
        ({"type": "video_url", "video_url": {"url": True}, "uuid": "u"}, "video_url"),
        ({"type": "video_url", "video_url": 7, "uuid": "u"}, "video_url"),
        ({"type": 1.5, "video_url": {"url": URL}, "uuid": "u"}, "type"),
        ({"type": {"x": 1}, "video_url": {"url": URL}}, "type"),
        ({"type": "video_url", "video_url": {"url": URL}, "uuid": 5}, "uuid"),
        ({"type": "video_url", "video_url": {"url": URL}, "uuid": ""}, "uuid"),
        ({"type": "video_url", "video_url": {"url": URL}, "uuid": "u" * 257}, "uuid"),
        ({"type": "image_url", "video_url": {"url": URL}, "uuid": "u"}, "1"),
        ({"video_url": {"url": URL}, "image_url": {"url": URL}, "uuid": "u"}, "1"),
        ({"type": "image_embeds", "image_embeds": None, "uuid": "u"}, "1"),
        ({"type": "text", "text": "a", "uuid": "u"}, "1"),
    ],
)
def test_other_forms_are_refused_by_name(part: Any, param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(part)
    assert caught.value.field is not None
    assert caught.value.field.startswith("messages.0.content.1")
    assert caught.value.field.endswith(param)


def test_messages_without_parts() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": None}, 5]
    assert checked_messages(messages, "t") == messages


def test_bodies_that_name_media() -> None:
    part = {"type": "video_url", "url": URL}
    assert not named_media({"content_parts": [part], "uuid": "of the request"})
    assert named_media({"content_parts": [{**part, "uuid": "mine"}]})
    assert named_media([{"a": {"b": [{"image_url": None, "uuid": "mine"}]}}])
    assert not named_media([{"image_url": None, "uuid": None}])
