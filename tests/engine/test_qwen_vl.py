"""Qwen2.5-VL and Qwen3-VL beyond the matrix: shapes, times and orders of media, against the oracle.

Frames keep their shape in these families, positions have three axes, and images stand between
videos. All requests are in flight together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from metok_vllm.config.methods import POOL, RESIZE, SELECT
from tests.engine.mrope_expected import placed_media
from tests.engine.rendered import render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import without_ties
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, Picture, make_prompt
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = pytest.mark.slow

# Sums in other shapes: several chunks, and batches.
TOLERANCE, NEW_TOKENS = 1e-3, 12
LENGTHS = (3, 6, 2, 4)
PICTURE = Picture(3, (1,), (160, 96))
# Grids of features at strides of 1, 2 and 4: partial cells in both directions, in one, and in none.
RESOLUTIONS: dict[str, Parts] = {
    "one row": (9, Clip(5, LENGTHS, (32, 416)), 20),
    "wide": (9, Clip(5, LENGTHS, (64, 224)), 20),
    "tall": (9, Clip(5, LENGTHS, (224, 96)), 20),
    "whole cells": (9, Clip(5, LENGTHS, (128, 128)), 20),
    "a cell too many": (9, Clip(6, (2, 3), (160, 288)), 20),
}
ORDERS: dict[str, Parts] = {
    "video then image": (6, Clip(8, LENGTHS, fps=4.0), 4, PICTURE, 21),
    "image then video": (6, PICTURE, 4, Clip(8, LENGTHS, fps=2 / 0.37), 21),
    "image last": (6, Clip(8, LENGTHS, (96, 96)), PICTURE),
    "image between videos": (3, Clip(8, (2, 3)), 4, PICTURE, 5, Clip(9, LENGTHS, (64, 96)), 20),
    "two videos": (3, Clip(8, LENGTHS, (224, 64), fps=0.3), Clip(9, (4, 3), odd=True), 20),
    "an odd frame": (6, Clip(4, LENGTHS, fps=3.0, odd=True), 9),
    "positions beyond the context": (6, Clip(4, LENGTHS, fps=0.01), 9),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduce": SELECT, "decode_keep": 0.25},
    {"stages": [2, 3], "keep_ratio": 0.5},
    {"stages": [1], "reduce": RESIZE},
]


@pytest.fixture(
    scope="module",
    params=[QWEN2_5_VL, QWEN3_VL, pytest.param(QWEN3_VL_MOE, marks=pytest.mark.thorough)],
)
def engine(
    request: pytest.FixtureRequest, mrope_engine: Callable[..., StagedEngine]
) -> StagedEngine:
    return mrope_engine(request.param)


def answer(engine: StagedEngine, prompts: list[tuple[Parts, dict[str, Any]]]) -> None:
    """Answers in one batch are the naive decoder's."""
    cases = [without_ties(engine, *prompt, NEW_TOKENS) for prompt in prompts]
    engine.reset_caches()
    answers = engine.answer([prompt for prompt, _ in cases], NEW_TOKENS)
    for prompt, (_, expected), got in zip(prompts, cases, answers, strict=True):
        assert got is not None
        assert got.tokens == expected.tokens, prompt
        assert got.error(expected) <= TOLERANCE, prompt


def test_many_resolutions_in_one_batch(engine: StagedEngine) -> None:
    reductions = (POOL, SELECT, RESIZE)
    prompts: list[tuple[Parts, dict[str, Any]]] = []
    for number, parts in enumerate(RESOLUTIONS.values()):
        prompts.append((parts, {"reduce": reductions[number % 3]}))
    prompts += [(RESOLUTIONS["tall"], {"reduce": reduce}) for reduce in reductions[:2]]
    answer(engine, [*prompts, (RESOLUTIONS["wide"], OFF), ((30,), {})])


def test_orders_and_times_of_media(engine: StagedEngine) -> None:
    prompts = []
    for number, parts in enumerate(ORDERS.values()):
        prompts.append((parts, OPTIONS[number % len(OPTIONS)]))
    answer(engine, [*prompts, (ORDERS["image between videos"], OFF)])


def test_times_of_frames_are_those_of_the_clip(mrope_engine: Callable[..., StagedEngine]) -> None:
    """The oracle reads them from the processor's fields, so a wrong one would not show above."""
    engine = mrope_engine(QWEN2_5_VL)
    for parts in ORDERS.values():
        dense = render(engine, make_prompt(parts, OFF, media=QWEN))
        clips = [part for part in parts if isinstance(part, Clip) and part != PICTURE]
        for clip, (placed, medium) in zip(
            clips, placed_media(QWEN2_5_VL, dense, "video"), strict=True
        ):
            assert medium.seconds == pytest.approx(2 / clip.fps)
            assert medium.frames == sum(clip.lengths), placed


# Four temporal patches that are 40,000 seconds apart.
APART = Clip(4, (2, 2), fps=5e-5)


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        ((6, APART, 9), {}, "240001 rotary positions"),
        ((6, APART, 9), {"rule": "evs"}, "240001 rotary positions"),
        ((6, Clip(4, (2, 2)), 9), {"strides": [3, 4, 8]}, "multiples of 2.*got 3"),
    ],
)
def test_a_refused_request_leaves_the_engine_as_it_was(
    mrope_engine: Callable[..., StagedEngine], parts: Parts, options: dict[str, Any], said: str
) -> None:
    engine = mrope_engine(QWEN2_5_VL)
    for _ in range(2):  # the second time, its video is in vLLM's processor cache
        with pytest.raises(VLLMValidationError, match=said):
            engine.answer_alone(make_prompt(parts, options, media=QWEN))
    answer(engine, [(RESOLUTIONS["tall"], {})])
