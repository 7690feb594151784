"""METok requests in batches, in chunks and one after another answer as the naive decoder.

The engine's step is short: some prompts share one, others are prefilled in chunks.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.staged import BLOCK, Answer, StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, make_prompt
from tests.reference.decoder import Generated

pytestmark = pytest.mark.slow

STEP = 512
# Float32 sums in another order and, in batches, in other shapes.
ALONE, BATCHED = 5e-4, 1e-3

LONG, SHORT, OTHER = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Clip(2, (4, 4))
PICTURE = Picture(3, (1,))
BOTH = {"stages": [2, 3]}
KINDS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "stages 2 and 3": ((9, LONG, 30), BOTH),
    "all stages": ((5, SHORT, 40), {"keep_ratio": 0.5, "decode_keep": 0.25}),
    "stage 3": ((5, SHORT, 27), {"stages": [3]}),
    "switched off": ((5, SHORT, 31), OFF),
    "text": ((70,), {}),
    "image": ((4, PICTURE, 20), {}),
    "in chunks": ((20, LONG, 200), BOTH),
    "two videos": ((7, SHORT, 9, OTHER, 15), {"stages": [2, 3], "decode_keep": 0.5}),
}

# Also answered by vLLM's own engine.
PLAIN: tuple[Parts, ...] = (
    (6, SHORT, 30),
    (SHORT, 20),
    (9, SHORT),
    (5, Clip(4, (5, 3)), 7, SHORT, 9),
    (4, PICTURE, 6, SHORT, 12),
    (4, PICTURE, 20),
    (66,),
)


@pytest.fixture(scope="module")
def engine(short_step: StagedEngine) -> StagedEngine:
    assert short_step.step_tokens == STEP
    return short_step


@pytest.fixture(scope="module")
def stock_answers(stock: StagedEngine) -> list[Answer]:
    """The answer of vLLM's own engine to each of `PLAIN`, alone."""
    answers = []
    for parts in PLAIN:
        stock.reset_caches()
        answers.append(stock.answer_alone(make_prompt(parts)))
    return answers


@pytest.fixture(scope="module")
def mixed(engine: StagedEngine) -> dict[str, tuple[Any, Generated]]:
    """A prompt of each kind with its expected answer."""
    return {kind: without_ties(engine, *spec) for kind, spec in KINDS.items()}


def agree(
    answers: list[Answer | None], cases: list[tuple[Any, Generated]], tolerance: float
) -> None:
    for answer, (_, expected) in zip(answers, cases, strict=True):
        assert answer is not None
        assert answer.error(expected) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_alone(engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], kind: str) -> None:
    engine.reset_caches()
    agree(engine.answer([mixed[kind][0]]), [mixed[kind]], ALONE)


@pytest.mark.parametrize(
    "arrivals", [[0] * 8, [0, 3, 5, 11, 1, 4, 20, 7], [9, 8, 7, 6, 5, 4, 3, 2]]
)
def test_in_a_mixed_batch(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], arrivals: list[int]
) -> None:
    engine.reset_caches()
    cases = list(mixed.values())
    agree(engine.answer([prompt for prompt, _ in cases], arrivals=arrivals), cases, BATCHED)


@pytest.mark.parametrize("tokens", [0, 1, 2, 9])
def test_beside_aborted_neighbours(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], tokens: int
) -> None:
    """Aborted before the prefill, between prefill and eviction, and while decoding."""
    engine.reset_caches()
    cases = list(mixed.values())
    neighbours = [make_prompt(*spec, seed=20) for spec in KINDS.values()]
    prompts = [
        prompt for pair in zip(neighbours, cases, strict=True) for prompt in (pair[0], pair[1][0])
    ]
    answers = engine.answer(prompts, aborts={2 * i: tokens for i in range(len(neighbours))})
    assert answers[::2] == [None] * len(neighbours)
    agree(answers[1::2], cases, BATCHED)


def test_two_questions_about_one_video(engine: StagedEngine) -> None:
    """Both prompts share a prefix, which no cache may serve across questions."""
    cases = [without_ties(engine, (40, LONG, words), BOTH) for words in (33, 66)]
    for order in ((0, 1), (1, 0), (0, 1, 0), (1, 0, 1)):
        engine.reset_caches()
        for number in order:
            prompt, expected = cases[number]
            answer = engine.answer_alone(prompt)
            assert answer.cached == 0
            assert answer.error(expected) <= ALONE


@pytest.mark.parametrize("kind", ["text", "image", "switched off", "all stages"])
def test_only_plain_requests_hit_the_prefix_cache(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], kind: str
) -> None:
    engine.reset_caches()
    for again in (False, True):
        answer = engine.answer_alone(mixed[kind][0])
        agree([answer], [mixed[kind]], ALONE)
        whole_blocks = (answer.prompt_tokens - 1) // BLOCK * BLOCK
        assert whole_blocks > 0
        assert answer.cached == (whole_blocks if again and kind != "all stages" else 0)


@pytest.mark.parametrize("shape", range(len(PLAIN)))
def test_switched_off_alone(engine: StagedEngine, stock_answers: list[Answer], shape: int) -> None:
    engine.reset_caches()
    answer = engine.answer_alone(make_prompt(PLAIN[shape], OFF))
    assert answer.error(stock_answers[shape]) <= 1e-5


def test_switched_off_beside_metok_requests(
    engine: StagedEngine, stock_answers: list[Answer], mixed: dict[str, tuple[Any, Generated]]
) -> None:
    engine.reset_caches()
    others = list(mixed.values())
    prompts = [prompt for prompt, _ in others] + [make_prompt(parts, OFF) for parts in PLAIN]
    answers = engine.answer(prompts)
    agree(answers[: len(others)], others, BATCHED)
    for answer, expected in zip(answers[len(others) :], stock_answers, strict=True):
        assert answer is not None
        assert answer.error(expected) <= BATCHED
