"""Turns of a conversation whose first question selects, against the naive decoder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import END_ID, without_ties
from tests.engine.staged_prompts import Clip, Parts

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
LONG, SHORT, OTHER = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Clip(2, (4, 4))
END = (END_ID,)
CONVERSATION = {"focus": "conversation"}


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ((20, LONG, 30, END, 40), CONVERSATION),
        ((20, LONG, 30, END, 400, END, 40), {**CONVERSATION, "decode_keep": 0.5}),
        ((LONG, END, 40), {**CONVERSATION, "stages": [2]}),
        ((20, SHORT, 9, OTHER, 30, END, 40), {**CONVERSATION, "stages": [3], "decode_keep": 1}),
        ((20, LONG, 30), {"focus": "video", "stages": [3]}),
        ((20, LONG, 30), {"evict_after": 1}),
        ((20, LONG, 30, END, 40), {**CONVERSATION, "evict_after": 7}),
        ((20, LONG, 700), {"evict_after": 33, "stages": [3], "decode_keep": 0.5}),
    ],
)
def test_the_focus_scores(short_step: StagedEngine, parts: Parts, options: dict[str, Any]) -> None:
    prompt, expected = without_ties(short_step, parts, options)
    short_step.reset_caches()
    assert short_step.answer_alone(prompt).error(expected) <= TOLERANCE


@pytest.mark.parametrize("options", [{}, {"decode_keep": 0.5}, {"stages": [2]}, {"stages": [3]}])
def test_the_next_turn_goes_on(short_step: StagedEngine, options: dict[str, Any]) -> None:
    first: Parts = (20, LONG, 30, END, 3)
    turns = [first, (*first, 7, END, 12, END, 3), (*first, 7, END, 12, END, 3, 40, END, 3)]
    cases = [without_ties(short_step, parts, {**CONVERSATION, **options}) for parts in turns]
    short_step.reset_caches()
    lengths = []
    for prompt, expected in cases:
        answer = short_step.answer_alone(prompt)
        assert answer.error(expected) <= TOLERANCE
        lengths.append((answer.cached, answer.prompt_tokens))
    assert lengths[0][0] == 0
    assert [cached for cached, _ in lengths[1:]] == [tokens for _, tokens in lengths[:-1]]
