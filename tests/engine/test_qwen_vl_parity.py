"""Qwen2.5-VL and Qwen3-VL with METok switched off answer as vLLM's own classes do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.staged import Answer, StagedEngine
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, Picture, make_prompt
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = pytest.mark.slow

TOLERANCE, NEW_TOKENS = 1e-5, 12
LENGTHS = (3, 6, 2, 4)
PICTURE = Picture(3, (1,), (160, 96))
KINDS: dict[str, Parts] = {
    "text": (40,),
    "image": (9, PICTURE, 20),
    "video": (9, Clip(5, LENGTHS, fps=3.7, odd=True), 20),
    "video and image": (9, Clip(5, LENGTHS, (96, 224)), 3, PICTURE, 20),
    "image and video": (9, PICTURE, 3, Clip(5, LENGTHS, (96, 224)), 20),
    "two videos": (9, Clip(5, LENGTHS), 30, Clip(6, (4, 4), (64, 64)), 20),
    # In chunks: longer than a step.
    "a long question": (9, Clip(5, LENGTHS, (96, 96)), 700),
}
METOK: list[tuple[Parts, dict[str, Any]]] = [
    ((9, Clip(7, LENGTHS), 20), {}),
    ((9, Clip(5, LENGTHS, fps=3.7, odd=True), 20), {"reduce": "select"}),
    ((9, PICTURE, Clip(7, LENGTHS), 20), {"stages": [1]}),
]


@dataclass
class Pair:
    """The same checkpoint with METok, and in vLLM alone."""

    metok: StagedEngine
    stock: StagedEngine


@pytest.fixture(
    scope="module",
    params=[QWEN2_5_VL, QWEN3_VL, pytest.param(QWEN3_VL_MOE, marks=pytest.mark.thorough)],
)
def pair(request: pytest.FixtureRequest, mrope_engine: Callable[..., StagedEngine]) -> Pair:
    return Pair(mrope_engine(request.param), mrope_engine(request.param, metok=False))


def prompts(options: dict[str, Any] | None) -> list[Any]:
    return [make_prompt(parts, options, media=QWEN) for parts in KINDS.values()]


def answers(engine: StagedEngine, given: list[Any]) -> list[Answer]:
    engine.reset_caches()
    found = engine.answer(given, NEW_TOKENS)
    return [answer for answer in found if answer is not None]


def errors(got: list[Answer], expected: list[Answer]) -> dict[str, float]:
    """Largest difference of a log-probability by kind; tokens must be equal."""
    return {
        kind: answer.error(right) for kind, answer, right in zip(KINDS, got, expected, strict=True)
    }


@pytest.mark.thorough
def test_batched_with_each_other(pair: Pair) -> None:
    got = answers(pair.metok, prompts(OFF))
    assert max(errors(got, answers(pair.stock, prompts(None))).values()) <= TOLERANCE


def test_batched_with_metok_requests(pair: Pair) -> None:
    """One of them is about a video that a plain request has as well."""
    on = [make_prompt(parts, options, media=QWEN) for parts, options in METOK]
    got = answers(pair.metok, [*on, *prompts(OFF)])[len(on) :]
    assert max(errors(got, answers(pair.stock, prompts(None))).values()) <= TOLERANCE
