"""With METok disabled for a request, the engine answers exactly as plain vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.engine.prompts import answer, chat_prompt, logprobs, scenes, token_ids, video

pytestmark = pytest.mark.slow

OFF = {"enabled": False}


def prompts(options: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """All videos have 16 frames: plain vLLM fails on videos of unequal length in one step."""
    picture = Image.fromarray(scenes(3, (1,), (90, 120))[0])
    return {
        "text": chat_prompt("Tell me something about the sea."),
        "image": chat_prompt("What is in the picture?", images=[picture]),
        "video": chat_prompt("What happens first?", videos=[video(1, (5, 9, 2))], options=options),
        "two videos": chat_prompt(
            "Which is longer?", videos=[video(1, (7, 9)), video(2, (16,))], options=options
        ),
        "video and image": chat_prompt(
            "Do they match?", videos=[video(4, (8, 8))], images=[picture], options=options
        ),
    }


@pytest.mark.parametrize("kind", list(prompts(None)))
def test_alone(plain: Any, metok: Any, kind: str) -> None:
    expected = answer(plain, [prompts(None)[kind]])[0]
    got = answer(metok, [prompts(OFF)[kind]])[0]
    assert got.prompt_token_ids == expected.prompt_token_ids
    assert token_ids(got) == token_ids(expected)
    assert logprobs(got) == pytest.approx(logprobs(expected), abs=1e-5)


def test_batched_with_each_other(plain: Any, metok: Any) -> None:
    expected = answer(plain, list(prompts(None).values()))
    got = answer(metok, list(prompts(OFF).values()))
    assert [token_ids(o) for o in got] == [token_ids(o) for o in expected]


def test_batched_with_metok_requests(plain: Any, metok: Any) -> None:
    off = list(prompts(OFF).values())
    on = [chat_prompt("And then?", videos=[video(s, (7, 4, 9))]) for s in (1, 8)]
    expected = answer(plain, list(prompts(None).values()))
    got = answer(metok, [*on, *off])[len(on) :]
    assert [token_ids(o) for o in got] == [token_ids(o) for o in expected]


def test_videos_of_unequal_length_in_one_step(metok: Any) -> None:
    """vLLM 0.32's own model class fails here and ends its engine."""
    batch = [chat_prompt("Why?", videos=[video(s, (n,))], options=OFF) for s, n in ((1, 4), (2, 9))]
    alone = [token_ids(answer(metok, [p])[0]) for p in batch]
    assert [token_ids(o) for o in answer(metok, batch)] == alone
