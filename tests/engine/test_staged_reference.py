"""The engine's answers equal the naive decoder's: every stage, boundary, ratio and prompt shape.

All requests of a matrix are in flight together, so each case also covers batching. The checkpoint
is a parameter: LLaVA-OneVision at all boundaries, the other families at one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, product
from math import inf
from statistics import median
from typing import Any

import pytest

from tests.engine.checkpoints import LLAVA_ONEVISION, MROPE_NAMES, Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.staged import BLOCK, StagedEngine
from tests.engine.staged_expected import expected_answer, given_to_decoder, without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, make_prompt, media_of
from tests.reference.decoder import Generated, LanguageModel

pytestmark = pytest.mark.slow

# Stages of 2, 2, 2, 2 layers, of 1, 2, 2, 3 (the default) and of 3, 2, 1, 2.
BOUNDARIES = ((2, 4, 6), (1, 3, 5), (3, 5, 6))
# Other models with LLaVA-OneVision's decoder differ in what enters it: test_families.py.
MODELS = [
    *((LLAVA_ONEVISION, boundaries) for boundaries in BOUNDARIES[:2]),
    # Qwen3-VL's deepstack has three layers, which come before the first boundary.
    *((name, BOUNDARIES[2]) for name in MROPE_NAMES),
]
STAGES = ((), (2,), (3,), (2, 3), (1, 2, 3))
RATIOS, DECODE_KEEPS = (0.3, 0.76, 1.0), (0.0, 0.25, 1.0)

LONG, SHORT = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2))
PICTURE = Picture(3, (1,))
# About one block of text and about two; videos without text before or after.
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

    Plain requests run at all of them: they show the error of float32 alone.
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
    """One engine and its answers to the matrix: errors and allowed errors by case."""

    engine: StagedEngine
    in_float64: LanguageModel
    error: dict[Case, float] = field(default_factory=dict)
    tolerance: dict[Case, float] = field(default_factory=dict)

    def allowed(self, prompt: Any, expected: Generated, error: float) -> float:
        """1e-4, or three times the float32 error of the reference itself on this prompt."""
        if error <= 1e-4:
            return 1e-4
        wide = expected_answer(self.engine, prompt, reference=self.in_float64)
        assert wide.tokens == expected.tokens
        cost = float((wide.logprobs_SV - expected.logprobs_SV).abs().max())
        return max(1e-4, 3 * cost)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, boundaries), marks=[pytest.mark.thorough] if number else [])
        for number, (name, boundaries) in enumerate(MODELS)
    ],
    ids=str,
)
def run(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Run:
    name, boundaries = request.param
    checkpoint = checkpoint_of(name)
    engine = StagedEngine(engines, checkpoint.folder, checkpoint.language, boundaries)
    run = Run(engine, checkpoint.in_float64())
    cases = matrix(boundaries)
    prompts = [without_ties(engine, SHAPES[case.shape], case.options) for case in cases]
    answers = engine.answer([prompt for prompt, _ in prompts])
    for case, answer, (prompt, expected) in zip(cases, answers, prompts, strict=True):
        assert answer is not None
        same = answer.tokens == expected.tokens
        error = answer.error(expected) if same else inf
        run.error[case] = error
        run.tolerance[case] = run.allowed(prompt, expected, error)
    return run


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
    """Stages add no error: nearly all answers are within 1e-4, as those of plain requests."""
    plain = [error for case, error in run.error.items() if not case.stages]
    staged = [error for case, error in run.error.items() if case.stages]
    assert max(plain) <= 1e-4
    assert median(staged) <= 2 * median(plain)
    assert sum(error > 1e-4 for error in staged) <= len(staged) // 10


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_stages_that_end_at_a_block_edge(run: Run, offset: int) -> None:
    """The text is so long that one stage, in prefill or in decoding, fills its last block."""
    engine, before = run.engine, 6
    options = {"stages": [2, 3], "keep_ratio": 0.76, "decode_keep": 0.25}
    sample = make_prompt((before, SHORT, BLOCK), options, media=media_of(engine.model.config))
    given = given_to_decoder(engine, sample, engine.reference)
    (video,) = given.videos
    fixed = len(video.separators)
    held = [fixed - (fixed - tokens) // 4 for tokens in video.totals[1:3]]
    # What a placeholder has around it is text too.
    around = len(given.embeds_ND) - len(video.event_of) - before - BLOCK
    prompts = []
    for tokens in (*video.totals, *held):
        after = -(tokens + around + before - offset) % BLOCK + BLOCK
        assert (tokens + around + before + after - offset) % BLOCK == 0
        prompts.append(without_ties(engine, (before, SHORT, after), options))
    answers = engine.answer([prompt for prompt, _ in prompts])
    for answer, (prompt, expected) in zip(answers, prompts, strict=True):
        assert answer is not None
        error = answer.error(expected)
        assert error <= run.allowed(prompt, expected, error)
