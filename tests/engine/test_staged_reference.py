"""The engine's answers equal the naive decoder's: every stage, boundary, ratio and prompt shape.

All requests of a matrix are in flight together, so each line is also a proof about batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.engine.staged import BLOCK, StagedEngine, decided
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture
from tests.reference.decoder import Generated, LanguageModel
from tests.reference.pruning import planned_tokens
from tests.reference.staged_checkpoint import language_model, load_model, write_checkpoint

pytestmark = pytest.mark.slow

# Two layers a stage; the default, with three groups in the last stage; stages of 3, 2, 1, 2.
BOUNDARIES = ((2, 4, 6), (1, 3, 5), (3, 5, 6))
STAGES = ((), (2,), (3,), (2, 3), (1, 2, 3))
RATIOS, DECODE_KEEPS = (0.3, 0.76, 1.0), (0.0, 0.25, 1.0)

LONG, SHORT = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2))
PICTURE = Picture(3, (1,))
# Around one block of text and around two, and where a video has no text on one side.
SHAPES: dict[str, Parts] = {
    "31 words": (5, LONG, 26),
    "32 words": (20, SHORT, 12),
    "33 words, none before": (SHORT, 33),
    "63 words": (40, SHORT, 23),
    "64 words": (33, SHORT, 31),
    "65 words": (1, SHORT, 64),
    "video last": (12, LONG),
    "video alone": (SHORT,),
    "two videos": (7, LONG, 9, SHORT, 15),
    "two videos, the second last": (7, SHORT, 31, LONG),
    "image before": (4, PICTURE, 6, SHORT, 20),
    "image after": (4, SHORT, 6, PICTURE, 20),
    "one frame": (4, Clip(1, (1,)), 9),
}


@dataclass(frozen=True)
class Case:
    """A line of the matrix: a prompt shape with the settings of its request."""

    shape: str
    stages: tuple[int, ...]
    ratio: float
    decode_keep: float

    @property
    def options(self) -> dict[str, Any]:
        if not self.stages:
            return OFF
        options: dict[str, Any] = {"stages": list(self.stages)}
        if 2 in self.stages:
            options["keep_ratio"] = self.ratio
        if 3 in self.stages:
            options["decode_keep"] = self.decode_keep
        return options


def matrix(boundaries: tuple[int, int, int]) -> list[Case]:
    """Every shape with every choice of stages, each at two of the three boundaries.

    Plain requests run at all of them: they tell what float32 costs.
    """
    shift = BOUNDARIES.index(boundaries)
    cases = []
    for (i, stages), (j, shape) in product(enumerate(STAGES), enumerate(SHAPES)):
        if stages and (i + j) % 3 == shift:
            continue
        ratio, keep = RATIOS[(j + shift) % 3], DECODE_KEEPS[(i + j // 3) % 3]
        cases.append(Case(shape, stages, ratio, keep))
    return cases


@dataclass
class Run:
    """One engine and the matrix that went through it: errors by case, and what is allowed."""

    engine: StagedEngine
    in_float64: LanguageModel
    error: dict[Case, float] = field(default_factory=dict)
    tolerance: dict[Case, float] = field(default_factory=dict)

    def allowed(self, prompt: Any, expected: Generated, error: float) -> float:
        """1e-4, or three times what float32 costs the reference itself on this very prompt."""
        if error <= 1e-4:
            return 1e-4
        wide = self.engine.expected(prompt, reference=self.in_float64)
        assert wide.tokens == expected.tokens
        cost = float((wide.logprobs_SV - expected.logprobs_SV).abs().max())
        return max(1e-4, 3 * cost)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "model"
    write_checkpoint(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(boundaries, marks=[pytest.mark.thorough] if number else [])
        for number, boundaries in enumerate(BOUNDARIES)
    ],
    ids=str,
)
def run(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Run]:
    engine = StagedEngine(checkpoint, language_model(load_model(checkpoint)), request.param)
    run = Run(engine, language_model(load_model(checkpoint).double()))
    cases = matrix(request.param)
    asked = [decided(engine, SHAPES[case.shape], case.options) for case in cases]
    answers = engine.answer([prompt for prompt, _ in asked])
    for case, answer, (prompt, expected) in zip(cases, answers, asked, strict=True):
        assert answer is not None
        same = answer.tokens == expected.tokens
        error = answer.error(expected) if same else inf
        run.error[case] = error
        run.tolerance[case] = run.allowed(prompt, expected, error)
    yield run
    engine.stop()


def test_every_pair_of_choices_is_in_the_matrix() -> None:
    lines = [
        (boundaries, case.shape, case.stages, case.ratio, case.decode_keep)
        for boundaries in BOUNDARIES
        for case in matrix(boundaries)
        if case.stages
    ]
    choices = (BOUNDARIES, tuple(SHAPES), STAGES[1:], RATIOS, DECODE_KEEPS)
    for a, b in combinations(range(len(choices)), 2):
        assert {(line[a], line[b]) for line in lines} == set(product(choices[a], choices[b]))


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_equal_the_reference(run: Run, shape: str) -> None:
    errors = {case: error for case, error in run.error.items() if case.shape == shape}
    assert len(errors) >= 3
    for case, error in errors.items():
        assert error <= run.tolerance[case], case


def test_errors_are_those_of_plain_requests(run: Run) -> None:
    """Stages add no error of their own: nearly all answers are within 1e-4, as plain ones are."""
    plain = [error for case, error in run.error.items() if not case.stages]
    staged = [error for case, error in run.error.items() if case.stages]
    assert max(plain) <= 1e-4
    assert median(staged) <= 2 * median(plain)
    assert sum(error > 1e-4 for error in staged) <= len(staged) // 10


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_stages_that_end_at_a_block_edge(run: Run, offset: int) -> None:
    """The text is as long as it takes for one stage, in prefill or decoding, to fill its blocks."""
    ratio, keep = 0.76, 0.25
    frames = sum(SHORT.lengths)
    dense = frames * 16 + 1
    ran = planned_tokens(frames, dense, 5, 0.6, 6, (2, 4, 8), 8, ratio, stage1=False)
    held = [-(-tokens // 4) for tokens in ran[1:3]]
    asked = []
    for tokens in (*ran, *held):
        text = -(tokens - offset) % BLOCK + BLOCK
        assert (tokens + text - offset) % BLOCK == 0
        options = {"stages": [2, 3], "keep_ratio": ratio, "decode_keep": keep}
        asked.append(decided(run.engine, (6, SHORT, text - 6), options))
    answers = run.engine.answer([prompt for prompt, _ in asked])
    for answer, (prompt, expected) in zip(answers, asked, strict=True):
        assert answer is not None
        error = answer.error(expected)
        assert error <= run.allowed(prompt, expected, error)
