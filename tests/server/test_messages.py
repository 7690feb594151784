from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.server.api.chat import MetokChatRequest
from metok_vllm.server.api.messages import count_videos, last_user_text

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


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([said("  Who?\n")], "Who?"),
        ([said([VIDEO, TEXT])], "What happens?"),
        ([said([{"type": "text", "text": " One "}, VIDEO, TEXT])], "One \nWhat happens?"),
        ([said([VIDEO])], ""),
        ([said(" ")], ""),
        ([said("Old"), {"role": "assistant", "content": "Answer"}, said("New")], "New"),
        ([said("Old"), said([VIDEO])], ""),
        ([said("Asked"), {"role": "assistant", "content": "No user"}], "Asked"),
        ([{"role": "system", "content": "Be brief"}], ""),
    ],
)
def test_the_last_words_of_the_user(messages: list[Any], text: str) -> None:
    assert last_user_text(messages) == text
    assert last_user_text(parsed(messages)) == text
