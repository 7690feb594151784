"""Messages of a chat request: videos, question, and media parts in the form for vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.messages import (
    checked_messages,
    count_videos,
    has_named_media,
    question_of,
)
from metok_vllm.server.chat.request_fields import MetokChatRequest
from metok_vllm.server.media.named import keep_url, named_url

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
TEXT = {"type": "text", "text": "What happens?"}


def parsed(messages: list[Any]) -> Any:
    return MetokChatRequest(messages=messages, model="m").messages


def said(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("text", 0),
        ([TEXT], 0),
        ([VIDEO, TEXT, VIDEO], 2),
        ([{"video_url": {"url": "x"}}], 1),
        ([{"type": "image_url", "image_url": {"url": "x"}}], 0),
        (None, 0),
    ],
)
def test_counting_videos(content: Any, count: int) -> None:
    assert count_videos([{"role": "user", "content": content}]) == count
    assert count_videos([{"role": "user", "content": content}] * 2) == 2 * count


def test_counting_videos_in_a_parsed_request() -> None:
    assert count_videos(parsed([{"role": "user", "content": [VIDEO, TEXT]}])) == 1


SYSTEM = {"role": "system", "content": "Be brief"}
TOOL = {"role": "tool", "content": "42 degrees", "tool_call_id": "a"}
CALL = {"role": "assistant", "tool_calls": []}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([said("  Who?\n")], "Who?"),
        ([said([VIDEO, TEXT])], "What happens?"),
        ([said([{"type": "text", "text": " One "}, VIDEO, TEXT])], "One \nWhat happens?"),
        ([said("Old"), {"role": "assistant", "content": "Answer"}, said("New")], "New"),
        ([said("Asked"), {"role": "assistant", "content": "No user"}], "Asked"),
        ([said("Old"), {"role": "assistant", "content": "Answer"}, said([VIDEO])], "Old"),
        ([said("Who?"), said([VIDEO])], "Who?"),
        ([said([VIDEO]), said("Who?")], "Who?"),
        ([said([VIDEO, TEXT]), said("Time: noon")], "What happens?\nTime: noon"),
        ([said([VIDEO, TEXT]), CALL, TOOL], "What happens?"),
        ([SYSTEM, said("Who?")], "Who?"),
    ],
)
def test_the_question_is_what_the_user_says_since_the_last_answer(
    messages: list[Any], text: str
) -> None:
    assert question_of(messages) == (text, "user_turn")
    assert question_of(parsed(messages)) == (text, "user_turn")


ANSWER = {"role": "assistant", "content": "Answer"}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([said([VIDEO, TEXT]), ANSWER, said("Later")], "What happens?"),
        ([said("Old"), ANSWER, said([VIDEO, TEXT]), ANSWER, said("Later")], "What happens?"),
        ([said("Who?"), said([VIDEO]), ANSWER, said([VIDEO, TEXT])], "Who?"),
        ([said("Old"), ANSWER, said([VIDEO]), ANSWER, said("Later")], "Later"),
        ([said("Old"), ANSWER, said([VIDEO])], "Old"),
        ([said("Old"), ANSWER, said("New")], "Old"),
    ],
)
def test_the_question_of_a_conversation(messages: list[Any], text: str) -> None:
    assert question_of(messages, "conversation") == (text, "user_turn")
    assert question_of(parsed(messages), "conversation") == (text, "user_turn")


def test_the_question_may_stand_in_the_instructions() -> None:
    assert question_of([SYSTEM, said([VIDEO])]) == ("Be brief", "prompt_text")
    assert question_of([{**SYSTEM, "role": "developer"}, said(" ")]) == ("Be brief", "prompt_text")


@pytest.mark.parametrize("messages", [[], [said([VIDEO])], [said(" ")]])
def test_no_question(messages: list[Any]) -> None:
    assert question_of(messages) == ("", "")


URL = "data:video/mp4;base64,AAAA"


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
    assert not has_named_media({"content_parts": [part], "uuid": "of the request"})
    assert has_named_media({"content_parts": [{**part, "uuid": "mine"}]})
    assert has_named_media([{"a": {"b": [{"image_url": None, "uuid": "mine"}]}}])
    assert not has_named_media([{"image_url": None, "uuid": None}])
