"""Prompts longer than a step are pruned like any other, whatever the step's budget.

The naive decoder knows no chunks. Borders of chunks lie before, in and after each video and in the
question; with a small budget the later stages run in row blocks. Qwen's families run fewer shapes:
the matrix of shapes is that of the scheduler, which no family changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.checkpoints import LLAVA_ONEVISION, Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.staged import NEW_TOKENS, StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, make_prompt, media_of
from tests.reference.decoder import Generated
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL

pytestmark = pytest.mark.slow

# Chunks and row blocks are sums in other shapes.
TOLERANCE = 1e-3
LONG, SHORT, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Picture(3, (1,))
# Steps and pruning layers; with the latter, stages have one and two cache groups.
THOROUGH = pytest.mark.thorough
ENGINES = (
    pytest.param((LLAVA_ONEVISION, 64, (2, 4, 6)), marks=THOROUGH, id="64"),
    pytest.param((LLAVA_ONEVISION, 256, (1, 3, 5)), id="256"),
    pytest.param((LLAVA_ONEVISION, 512, (2, 4, 6)), marks=THOROUGH, id="512"),
    pytest.param((LLAVA_ONEVISION, 2048, (1, 3, 5)), marks=THOROUGH, id="2048"),
    pytest.param((QWEN3_VL, 256, (3, 5, 6)), id="qwen3_vl-256"),
    pytest.param((QWEN3_VL, 64, (3, 5, 6)), marks=THOROUGH, id="qwen3_vl-64"),
    pytest.param((QWEN2_5_VL, 512, (2, 4, 6)), marks=THOROUGH, id="qwen2_5_vl-512"),
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
# With borders of chunks between the text of frames, for a budget of 64 or 256 tokens.
FEWER = ("a long question", "video last", "two videos", "an image between")
OPTIONS: dict[str, dict[str, Any]] = {
    "all stages": {"decode_keep": 0.25},
    "stages 2 and 3": {"stages": [2, 3]},
    "stage 2": {"stages": [2]},
    "stage 3": {"stages": [3], "decode_keep": 0.5},
}
Case = tuple[Any, Generated]


@dataclass(frozen=True)
class Chunked:
    """An engine in short steps, and what it is asked: answers have `new_tokens` tokens."""

    engine: StagedEngine
    shapes: dict[str, Parts]
    new_tokens: int

    def case(self, parts: Parts, options: dict[str, Any]) -> Case:
        return without_ties(self.engine, parts, options, self.new_tokens)

    def in_batches(self, cases: list[Case], arrivals: list[int] | None = None) -> None:
        self.engine.reset_caches()
        prompts = [prompt for prompt, _ in cases]
        answers = self.engine.answer(prompts, self.new_tokens, arrivals=arrivals)
        for (_, expected), answer in zip(cases, answers, strict=True):
            assert answer is not None
            assert answer.error(expected) <= TOLERANCE


@pytest.fixture(scope="module", params=ENGINES)
def chunked(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Chunked:
    name, budget, boundaries = request.param
    checkpoint = checkpoint_of(name)
    engine = StagedEngine(
        engines,
        checkpoint.folder,
        checkpoint.language,
        boundaries,
        max_num_batched_tokens=budget,
    )
    if name == LLAVA_ONEVISION:
        return Chunked(engine, SHAPES, NEW_TOKENS)
    return Chunked(engine, {shape: SHAPES[shape] for shape in FEWER}, 12)


@pytest.mark.parametrize(
    ("chunked", "options"),
    [
        *(pytest.param(*e.values, OPTIONS["all stages"], marks=e.marks, id=e.id) for e in ENGINES),
        *(
            pytest.param(*e.values, options, marks=THOROUGH, id=f"{e.id}-{name}")
            for e in ENGINES
            if e.id in ("64", "512", "qwen3_vl-256")
            for name, options in OPTIONS.items()
            if name != "all stages"
        ),
    ],
    indirect=["chunked"],
)
def test_chunks_change_no_answer(chunked: Chunked, options: dict[str, Any]) -> None:
    cases = [chunked.case(parts, options) for parts in chunked.shapes.values()]
    for prompt, expected in cases:
        chunked.engine.reset_caches()
        answer = chunked.engine.answer_alone(prompt, chunked.new_tokens)
        assert answer.error(expected) <= TOLERANCE
    chunked.in_batches(cases)


def test_beside_plain_chunks_and_decodes(chunked: Chunked) -> None:
    """Chunks of METok prompts share steps with those of others, and with decodes."""
    cases = []
    for parts, options in zip(chunked.shapes.values(), [*OPTIONS.values()] * 3, strict=False):
        cases.append(chunked.case(parts, options))
        cases.append(chunked.case(parts, OFF))
    cases += [chunked.case((words,), {}) for words in (30, 400)]
    chunked.in_batches(cases, [(7 * index) % 23 for index in range(len(cases))])


def test_aborted_between_chunks(chunked: Chunked) -> None:
    """Nothing is left of it, and its neighbours' answers are their own."""
    gone = make_prompt(
        SHAPES["a question of several chunks"], {}, media=media_of(chunked.engine.model.config)
    )
    cases = [chunked.case(SHAPES[name], {}) for name in ("two videos", "a long question")]
    engine = chunked.engine
    engine.reset_caches()
    params = SamplingParams(max_tokens=8, temperature=0)
    for index in range(3):
        engine.llm.llm_engine.add_request(str(index), gone, params)
    for _ in range(2):
        engine.llm.llm_engine.step()
    engine.llm.llm_engine.abort_request([str(index) for index in range(3)])
    chunked.in_batches(cases)
    assert not len(engine.scheduler.evictor_state.buffer)
    assert not engine.model.staged.buffer.queries
