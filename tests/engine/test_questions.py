"""The question and the settings are part of a video's identity in every cache."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.engine.conftest import answer, ask, forget_caches, logprobs, scenes, token_ids, video

pytestmark = pytest.mark.slow

CLIP = video(11, (4, 11, 3, 6, 8))
QUESTIONS = ("a red ball rolls across the grass", "where does the small boat sail tonight?")


def alone(engine: Any, prompt: dict[str, Any]) -> Any:
    forget_caches(engine)
    return answer(engine, [prompt])[0]


@pytest.fixture(scope="module")
def expected(metok: Any) -> list[Any]:
    return [alone(metok, ask(q, videos=[CLIP])) for q in QUESTIONS]


def same(got: Any, expected: Any) -> None:
    assert token_ids(got) == token_ids(expected)
    assert logprobs(got) == pytest.approx(logprobs(expected), abs=1e-3)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)])
def test_one_after_the_other(metok: Any, expected: list[Any], order: tuple[int, ...]) -> None:
    forget_caches(metok)
    for i in order:
        same(answer(metok, [ask(QUESTIONS[i], videos=[CLIP])])[0], expected[i])


def test_at_once(metok: Any, expected: list[Any]) -> None:
    forget_caches(metok)
    outputs = answer(metok, [ask(q, videos=[CLIP]) for q in QUESTIONS])
    for got, want in zip(outputs, expected, strict=True):
        same(got, want)


def test_the_question_matters(metok: Any) -> None:
    """Same prompt length and text, another selection: the hidden question is what differs."""
    model = metok.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    stage1 = model.model_runner.get_model().stage1
    chosen = []
    for question in QUESTIONS:
        forget_caches(metok)
        stage1.remembered.clear()
        answer(metok, [ask(question, videos=[CLIP])], tokens=1)
        (key,) = stage1.remembered
        chosen.append((key, stage1.recall(key)))
    assert chosen[0][0] != chosen[1][0]
    assert chosen[0][1]["relevance_of_frame"] != chosen[1][1]["relevance_of_frame"]


def test_settings_matter(metok: Any) -> None:
    lengths = set()
    for options in ({}, {"num_events": 2}, {"preset": "max"}, {"enabled": False}):
        output = alone(metok, ask(QUESTIONS[0], videos=[CLIP], options=options))
        lengths.add(len(output.prompt_token_ids))
    assert len(lengths) == 4


def test_images_are_not_keyed_by_the_question(metok: Any) -> None:
    """A picture beside a video keeps its own identity, whatever is asked about the video."""
    picture = Image.fromarray(scenes(3, (1,), (90, 120))[0])
    renderer = metok.llm_engine.renderer
    keys = []
    for question in QUESTIONS:
        prompt = ask(question, videos=[CLIP], images=[picture])
        rendered = renderer.render_cmpl([prompt])[0]
        keys.append(rendered["mm_hashes"])
    assert keys[0]["image"] == keys[1]["image"]
    assert keys[0]["video"] != keys[1]["video"]
