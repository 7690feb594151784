"""METok requests beside others, in chunks, after each other: each as the naive decoder answers it.

The engine's step is short, so that some prompts share one and some do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.staged import BLOCK, Answer, StagedEngine, decided
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, laid_out
from tests.reference.decoder import Generated, LanguageModel
from tests.reference.staged_checkpoint import language_model, load_model, write_checkpoint

pytestmark = pytest.mark.slow

BOUNDARIES, STEP = (2, 4, 6), 512
# Float32 in another order of summation and, in batches, in other shapes.
ALONE, BATCHED = 2e-4, 1e-3

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

# Answered by vLLM's own engine too.
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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "model"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> LanguageModel:
    return language_model(load_model(checkpoint))


@pytest.fixture(scope="module")
def stock(checkpoint: Path, reference: LanguageModel) -> list[Answer | None]:
    """What vLLM's own engine answers to each of `PLAIN`, alone."""
    stock = StagedEngine(checkpoint, reference, None, max_num_batched_tokens=STEP)
    answers = []
    for parts in PLAIN:
        stock.forget_caches()
        answers += stock.answer([laid_out(parts)])
    stock.stop()
    return answers


@pytest.fixture(scope="module")
def engine(
    checkpoint: Path, reference: LanguageModel, stock: list[Answer | None]
) -> Iterator[StagedEngine]:
    """Started after the stock engine is gone: vLLM's engines of one process end together."""
    engine = StagedEngine(checkpoint, reference, BOUNDARIES, max_num_batched_tokens=STEP)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def mixed(engine: StagedEngine) -> dict[str, tuple[Any, Generated]]:
    """A prompt of each kind with its right answer."""
    return {kind: decided(engine, *spec) for kind, spec in KINDS.items()}


def agree(
    answers: list[Answer | None], asked: list[tuple[Any, Generated]], tolerance: float
) -> None:
    for answer, (_, expected) in zip(answers, asked, strict=True):
        assert answer is not None
        assert answer.error(expected) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_alone(engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], kind: str) -> None:
    engine.forget_caches()
    agree(engine.answer([mixed[kind][0]]), [mixed[kind]], ALONE)


@pytest.mark.parametrize(
    "arrivals", [[0] * 8, [0, 3, 5, 11, 1, 4, 20, 7], [9, 8, 7, 6, 5, 4, 3, 2]]
)
def test_in_a_mixed_batch(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], arrivals: list[int]
) -> None:
    engine.forget_caches()
    asked = list(mixed.values())
    agree(engine.answer([prompt for prompt, _ in asked], arrivals=arrivals), asked, BATCHED)


@pytest.mark.parametrize("tokens", [0, 1, 2, 9])
def test_beside_aborted_neighbours(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], tokens: int
) -> None:
    """Given up before the prefill, after it but before anything was evicted, in decoding."""
    engine.forget_caches()
    asked = list(mixed.values())
    neighbours = [laid_out(*spec, seed=20) for spec in KINDS.values()]
    prompts = [
        prompt for pair in zip(neighbours, asked, strict=True) for prompt in (pair[0], pair[1][0])
    ]
    answers = engine.answer(prompts, aborts={2 * i: tokens for i in range(len(neighbours))})
    assert answers[::2] == [None] * len(neighbours)
    agree(answers[1::2], asked, BATCHED)


CHUNKED: dict[str, Parts] = {
    "cut in the question": (20, LONG, 250),
    "cut twice in the question": (20, SHORT, 1000),
    "cut at the video's end": (STEP - 321, LONG, 60),
    "cut one token into the question": (STEP - 322, LONG, 60),
    "cut in the video": (300, LONG, 64),
    "video last": (300, LONG),
    "cut between two videos": (100, LONG, 200, SHORT, 33),
    "cut in the second of two videos": (7, LONG, 120, SHORT, 31),
    "cut after two videos": (7, LONG, 20, SHORT, 100),
    "two videos, the second last": (40, SHORT, 300, LONG),
}


def test_a_prompt_longer_than_a_step_is_evicted_at_its_end(engine: StagedEngine) -> None:
    options = {"stages": [2, 3], "decode_keep": 0.25}
    asked = []
    for parts in CHUNKED.values():
        asked.append(decided(engine, parts, options))
        inputs = engine.llm.llm_engine.renderer.render_cmpl([asked[-1][0]], skip_mm_cache=True)[0]
        plan = inputs["metok"].prompt_plan(len(inputs["prompt_token_ids"]), STEP)
        assert not plan.one_step
        assert not plan.prunes
        assert plan.evicts
        assert plan.visual_tokens(decode=True)[1:] == (0, 0, 0)
    for one in asked:
        engine.forget_caches()
        agree(engine.answer([one[0]]), [one], ALONE)
    engine.forget_caches()
    agree(engine.answer([prompt for prompt, _ in asked]), asked, BATCHED)


def test_a_prompt_longer_than_a_step_is_left_alone_without_stage_3(engine: StagedEngine) -> None:
    asked = decided(engine, (20, LONG, 250), {"stages": [2]})
    agree(engine.answer([asked[0]]), [asked], ALONE)
    dense = decided(engine, (20, LONG, 250), OFF)
    assert asked[1].tokens == dense[1].tokens


def test_two_questions_about_one_video(engine: StagedEngine) -> None:
    """The second question begins as the first, so that caches could mistake one for the other."""
    asked = [decided(engine, (40, LONG, words), BOTH) for words in (33, 66)]
    for order in ((0, 1), (1, 0), (0, 1, 0), (1, 0, 1)):
        engine.forget_caches()
        for number in order:
            (answer,) = engine.answer([asked[number][0]])
            assert answer is not None
            assert answer.cached == 0
            assert answer.error(asked[number][1]) <= ALONE


@pytest.mark.parametrize("kind", ["text", "image", "switched off", "all stages"])
def test_only_plain_requests_hit_the_prefix_cache(
    engine: StagedEngine, mixed: dict[str, tuple[Any, Generated]], kind: str
) -> None:
    engine.forget_caches()
    for again in (False, True):
        (answer,) = engine.answer([mixed[kind][0]])
        agree([answer], [mixed[kind]], ALONE)
        assert answer is not None
        whole_blocks = (answer.prompt_tokens - 1) // BLOCK * BLOCK
        assert whole_blocks > 0
        assert answer.cached == (whole_blocks if again and kind != "all stages" else 0)


@pytest.mark.parametrize("shape", range(len(PLAIN)))
def test_switched_off_alone(engine: StagedEngine, stock: list[Answer | None], shape: int) -> None:
    engine.forget_caches()
    (answer,) = engine.answer([laid_out(PLAIN[shape], OFF)])
    expected = stock[shape]
    assert answer is not None
    assert expected is not None
    assert answer.error(expected) <= 1e-5


def test_switched_off_beside_metok_requests(
    engine: StagedEngine, stock: list[Answer | None], mixed: dict[str, tuple[Any, Generated]]
) -> None:
    engine.forget_caches()
    others = list(mixed.values())
    prompts = [prompt for prompt, _ in others] + [laid_out(parts, OFF) for parts in PLAIN]
    answers = engine.answer(prompts)
    agree(answers[: len(others)], others, BATCHED)
    for answer, expected in zip(answers[len(others) :], stock, strict=True):
        assert answer is not None
        assert expected is not None
        assert answer.error(expected) <= BATCHED
