from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.server.chat.messages import count_videos, question_of
from metok_vllm.server.chat.serving import MetokChatRequest

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


def test_the_question_may_stand_in_the_instructions() -> None:
    assert question_of([SYSTEM, said([VIDEO])]) == ("Be brief", "prompt_text")
    assert question_of([{**SYSTEM, "role": "developer"}, said(" ")]) == ("Be brief", "prompt_text")


@pytest.mark.parametrize("messages", [[], [said([VIDEO])], [said(" ")]])
def test_nothing_asked(messages: list[Any]) -> None:
    assert question_of(messages) == ("", "")
