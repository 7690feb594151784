"""Switched off for a request, METok's engine answers exactly as vLLM's own class."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.engine.conftest import answer, ask, logprobs, scenes, token_ids, video

pytestmark = pytest.mark.slow

OFF = {"enabled": False}


def prompts(options: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """All videos have 16 frames: vLLM's own class ends its engine when unequal ones meet."""
    picture = Image.fromarray(scenes(3, (1,), (90, 120))[0])
    return {
        "text": ask("Tell me something about the sea."),
        "image": ask("What is in the picture?", images=[picture]),
        "video": ask("What happens first?", videos=[video(1, (5, 9, 2))], options=options),
        "two videos": ask(
            "Which is longer?", videos=[video(1, (7, 9)), video(2, (16,))], options=options
        ),
        "video and image": ask(
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
    on = [ask("And then?", videos=[video(s, (7, 4, 9))]) for s in (1, 8)]
    expected = answer(plain, list(prompts(None).values()))
    got = answer(metok, [*on, *off])[len(on) :]
    assert [token_ids(o) for o in got] == [token_ids(o) for o in expected]


def test_videos_of_unequal_length_in_one_step(metok: Any) -> None:
    """vLLM 0.32 ends its engine here; METok's class must not."""
    batch = [ask("Why?", videos=[video(s, (n,))], options=OFF) for s, n in ((1, 4), (2, 9))]
    alone = [token_ids(answer(metok, [p])[0]) for p in batch]
    assert [token_ids(o) for o in answer(metok, batch)] == alone
