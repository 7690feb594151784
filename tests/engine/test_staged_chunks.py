"""Prompts longer than a step are pruned like any other, whatever the step's budget.

The naive decoder knows no chunks. Borders of chunks lie before, in and after each video and in the
question; with a small budget the later stages run in row blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.engines import EnginePool
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture
from tests.reference.decoder import Generated, LanguageModel

pytestmark = pytest.mark.slow

# Chunks and row blocks are sums in other shapes.
TOLERANCE = 1e-3
LONG, SHORT, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Picture(3, (1,))
# Steps and pruning layers; with the latter, stages have one and two cache groups.
THOROUGH = pytest.mark.thorough
ENGINES = (
    pytest.param((64, (2, 4, 6)), marks=THOROUGH, id="64"),
    pytest.param((256, (1, 3, 5)), id="256"),
    pytest.param((512, (2, 4, 6)), marks=THOROUGH, id="512"),
    pytest.param((2048, (1, 3, 5)), marks=THOROUGH, id="2048"),
)
SHAPES: dict[str, Parts] = {
    "video first": (LONG, 60),
    "a long question": (20, LONG, 250),
    "a question of several chunks": (20, SHORT, 900),
    "512 tokens to the question": (512 - 321, LONG, 60),
    "511 tokens to the question": (512 - 322, LONG, 60),
    "a long text before": (300, LONG, 64),
    "video last": (300, LONG),
    "two videos": (100, LONG, 200, SHORT, 33),
    "two videos, the second last": (40, SHORT, 300, LONG),
    "an image between": (30, SHORT, 5, PICTURE, 40, LONG, 20),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "all stages": {"decode_keep": 0.25},
    "stages 2 and 3": {"stages": [2, 3]},
    "stage 2": {"stages": [2]},
    "stage 3": {"stages": [3], "decode_keep": 0.5},
}
Case = tuple[Any, Generated]


@pytest.fixture(scope="module", params=ENGINES)
def engine(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    staged_checkpoint: Path,
    staged_reference: LanguageModel,
) -> StagedEngine:
    budget, boundaries = request.param
    return StagedEngine(
        engines, staged_checkpoint, staged_reference, boundaries, max_num_batched_tokens=budget
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=() if name == "all stages" else THOROUGH, id=name)
        for name, options in OPTIONS.items()
    ],
)
def test_chunks_change_no_answer(engine: StagedEngine, options: dict[str, Any]) -> None:
    cases = [without_ties(engine, parts, options) for parts in SHAPES.values()]
    for prompt, expected in cases:
        engine.reset_caches()
        assert engine.answer_alone(prompt).error(expected) <= TOLERANCE
    in_batches(engine, cases)


def test_beside_plain_chunks_and_decodes(engine: StagedEngine) -> None:
    """Chunks of METok prompts share steps with those of others, and with decodes."""
    cases = []
    for shape, options in zip(SHAPES.values(), [*OPTIONS.values()] * 3, strict=False):
        cases.append(without_ties(engine, shape, options))
        cases.append(without_ties(engine, shape, OFF))
    cases += [without_ties(engine, (words,), {}) for words in (30, 400)]
    in_batches(engine, cases, [(7 * index) % 23 for index in range(len(cases))])


def test_aborted_between_chunks(engine: StagedEngine) -> None:
    """Nothing is left of it, and its neighbours' answers are their own."""
    gone = without_ties(engine, SHAPES["a question of several chunks"], {})[0]
    cases = [without_ties(engine, SHAPES[name], {}) for name in ("two videos", "video first")]
    engine.reset_caches()
    params = SamplingParams(max_tokens=8, temperature=0)
    for index in range(3):
        engine.llm.llm_engine.add_request(str(index), gone, params)
    for _ in range(2):
        engine.llm.llm_engine.step()
    engine.llm.llm_engine.abort_request([str(index) for index in range(3)])
    in_batches(engine, cases)
    assert not len(engine.scheduler.evictor_state.buffer)
    assert not engine.model.staged.buffer.queries


def in_batches(engine: StagedEngine, cases: list[Case], arrivals: list[int] | None = None) -> None:
    engine.reset_caches()
    answers = engine.answer([prompt for prompt, _ in cases], arrivals=arrivals)
    for (_, expected), answer in zip(cases, answers, strict=True):
        assert answer is not None
        assert answer.error(expected) <= TOLERANCE
