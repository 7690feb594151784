"""The question and the METok settings are part of a video's key in every cache."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.engine.engines import model_of, reset_caches
from tests.engine.prompts import answer, chat_prompt, logprobs, scenes, token_ids, video

pytestmark = pytest.mark.slow

CLIP = video(11, (4, 11, 3, 6, 8))
QUESTIONS = ("a red ball rolls across the grass", "where does the small boat sail tonight?")


def alone(engine: Any, prompt: dict[str, Any]) -> Any:
    reset_caches(engine)
    return answer(engine, [prompt])[0]


@pytest.fixture(scope="module")
def expected(metok: Any) -> list[Any]:
    return [alone(metok, chat_prompt(q, videos=[CLIP])) for q in QUESTIONS]


def same(got: Any, expected: Any) -> None:
    assert token_ids(got) == token_ids(expected)
    assert logprobs(got) == pytest.approx(logprobs(expected), abs=1e-3)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)])
def test_one_after_the_other(metok: Any, expected: list[Any], order: tuple[int, ...]) -> None:
    reset_caches(metok)
    for i in order:
        same(answer(metok, [chat_prompt(QUESTIONS[i], videos=[CLIP])])[0], expected[i])


def test_at_once(metok: Any, expected: list[Any]) -> None:
    reset_caches(metok)
    outputs = answer(metok, [chat_prompt(q, videos=[CLIP]) for q in QUESTIONS])
    for got, want in zip(outputs, expected, strict=True):
        same(got, want)


def test_the_question_matters(metok: Any) -> None:
    """Another question gives the same frames another key and another relevance."""
    stage1 = model_of(metok).stage1
    chosen = []
    for question in QUESTIONS:
        reset_caches(metok)
        stage1.events.entries.clear()
        answer(metok, [chat_prompt(question, videos=[CLIP])], tokens=1)
        (key,) = stage1.events.entries
        chosen.append((key, stage1.events.report(key)))
    assert chosen[0][0] != chosen[1][0]
    assert chosen[0][1]["relevance_of_frame"] != chosen[1][1]["relevance_of_frame"]


def test_settings_matter(metok: Any) -> None:
    lengths = set()
    for options in ({}, {"num_events": 2}, {"preset": "max"}, {"enabled": False}):
        output = alone(metok, chat_prompt(QUESTIONS[0], videos=[CLIP], options=options))
        lengths.add(len(output.prompt_token_ids))
    assert len(lengths) == 4


def test_images_are_not_keyed_by_the_question(metok: Any) -> None:
    """The question changes the key of a video and not that of an image beside it."""
    picture = Image.fromarray(scenes(3, (1,), (90, 120))[0])
    renderer = metok.llm_engine.renderer
    keys = []
    for question in QUESTIONS:
        prompt = chat_prompt(question, videos=[CLIP], images=[picture])
        rendered = renderer.render_cmpl([prompt])[0]
        keys.append(rendered["mm_hashes"])
    assert keys[0]["image"] == keys[1]["image"]
    assert keys[0]["video"] != keys[1]["video"]
