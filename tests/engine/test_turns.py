"""Turns of a conversation whose first question selects, against the naive decoder.

A later turn goes on from what the prefill of an earlier one cached. The naive decoder knows no
caches: it runs every prompt whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.engine.engines import EnginePool
from tests.engine.staged import BLOCK, Answer, StagedEngine
from tests.engine.staged_expected import END_ID, series_without_ties, without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts
from tests.reference.decoder import Generated, LanguageModel
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL, QWEN3_VL

pytestmark = pytest.mark.slow

TOLERANCE, FEW = 1e-3, 10
LONG, SHORT, OTHER = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Clip(2, (4, 4))
END = (END_ID,)
CONVERSATION = {"focus": "conversation"}
Case = tuple[Any, Generated]


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


class Talk:
    """Turns about a video on an engine, with their expected answers."""

    def __init__(self, engine: StagedEngine, end: int, **options: Any) -> None:
        self.engine = engine
        self.end = (end,)
        self.options = {**CONVERSATION, **options}

    def turns(self, *parts: Any) -> list[Case]:
        """Of a first question of these parts, a second one, and a third one."""
        first = (*parts, self.end, 3)
        second = (*first, 7, self.end, 12, self.end, 3)
        return self.cases(first, second, (*second, 40, self.end, 3))

    def cases(self, *prompts: Parts) -> list[Case]:
        return series_without_ties(self.engine, prompts, self.options, FEW)

    def agree(self, cases: list[Case], arrivals: list[int] | None = None) -> list[Answer]:
        """Answers that are in flight together; each must be the expected one."""
        prompts = [prompt for prompt, _ in cases]
        answers = []
        for answer, case in zip(self.engine.answer(prompts, FEW, arrivals), cases, strict=True):
            assert answer is not None
            assert answer.error(case[1]) <= TOLERANCE
            answers.append(answer)
        return answers

    def one_by_one(self, cases: list[Case]) -> list[int]:
        """Answer one after another; how many tokens of each were cached."""
        self.engine.reset_caches()
        return [self.agree([case])[0].cached for case in cases]


@pytest.fixture(
    params=[
        pytest.param(((2, 4, 6), 512), id="512"),
        # Eight cache groups.
        pytest.param(((1, 3, 5), 64), marks=pytest.mark.thorough, id="64"),
    ]
)
def talk(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    staged_checkpoint: Path,
    staged_reference: LanguageModel,
) -> Callable[..., Talk]:
    """Turns with an end of turn known to the tests, on an engine; the first is `short_step`."""
    boundaries, step = request.param
    of_engine = engines, staged_checkpoint, staged_reference, boundaries
    engine = StagedEngine(*of_engine, max_num_batched_tokens=step)
    return lambda **options: Talk(engine, END_ID, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_keep": 0.5},
        {"decode_keep": 1},
        {"stages": [2]},
        {"stages": [3]},
        {"evict_after": 4},
    ],
    ids=str,
)
def test_the_next_turn_goes_on(talk: Callable[..., Talk], options: dict[str, Any]) -> None:
    turns = talk(**options).turns(20, LONG, 30)
    tokens = [tokens_of(talk(), case) for case in turns]
    assert talk().one_by_one(turns) == [0, *tokens[:-1]]
    # A branch, and the same prompt again: its last token gives the first new one.
    again = talk().agree([turns[1]])[0]
    assert (again.cached, again.prompt_tokens) == (tokens[1] - 1, tokens[1])


def tokens_of(talk: Talk, case: Case) -> int:
    return len(case[1].held[0])


@pytest.mark.parametrize("family", [QWEN3_VL, QWEN2_5_VL])
def test_positions_go_on(mrope_engine: Callable[..., StagedEngine], family: str) -> None:
    """With three rotary axes; the worker gets no pixels of the later turns."""
    talk = Talk(mrope_engine(family), ID_OF["<|im_end|>"], decode_keep=0.25)
    turns = talk.turns(9, SHORT, 20)
    tokens = [tokens_of(talk, case) for case in turns]
    assert talk.one_by_one(turns) == [0, *tokens[:-1]]
    with started_over(talk.engine):
        assert talk.agree(turns[1:2])[0].preemptions == 1


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("over", [0, 1, BLOCK - 1])
def test_a_prompt_that_ends_anywhere_in_a_block(
    talk: Callable[..., Talk], stage: int, over: int
) -> None:
    of_rest, options = 3, {"decode_keep": 0.25}
    (first,) = talk(**options).cases((SHORT, 9, END, of_rest))
    slots = tokens_of(talk(), first) - (0, *dropped(talk(), first))[stage]
    more = (over - slots) % BLOCK
    parts = (SHORT, 9, END, of_rest + more)
    turns = talk(**options).cases(parts, (*parts, 9, END, 3))
    assert talk().one_by_one(turns)[1] == tokens_of(talk(), first) + more


def dropped(talk: Talk, case: Case) -> list[int]:
    """Tokens of a prompt that stages 1 to 3 do not run on."""
    visual = [sum(map(len, of_stage)) for of_stage in case[1].kept]
    return [visual[0] - left for left in visual[1:]]


def test_in_batches(talk: Callable[..., Talk]) -> None:
    """Turns of several conversations beside prompts that begin, dense ones and text."""
    some, others = talk().turns(20, LONG, 30), talk(decode_keep=0.5).turns(SHORT, 9, OTHER, 15)
    engine = talk().engine
    beside = [
        without_ties(engine, (9, LONG, 30), {}, FEW),
        without_ties(engine, (5, SHORT, 31), OFF, FEW),
        without_ties(engine, (70,), {}, FEW),
        *talk(stages=[2]).cases((20, SHORT, 30, END, 5)),
    ]
    engine.reset_caches()
    talk().agree([some[0], others[0], *beside])
    answers = talk().agree([some[1], beside[0], others[1], *beside[1:]], [0, 0, 2, 1, 3, 0])
    assert all(answers[number].cached > 0 for number in (0, 2))
    answers = talk().agree([*some, *others, *beside], [0, 5, 2, 3, 1, 1, 4, 0, 2, 6])
    assert all(answer.cached > 0 for answer in answers[:6])


def test_a_rest_of_several_steps(talk: Callable[..., Talk]) -> None:
    turns = talk().cases((20, SHORT, 30, END, 3), (20, SHORT, 30, END, 3, 1100))
    assert talk().one_by_one(turns)[1] == tokens_of(talk(), turns[0])


def test_any_question_about_a_video(talk: Callable[..., Talk]) -> None:
    cases = talk(focus="video").cases(*((20, LONG, (400, word), 30) for word in (500, 600)))
    cached = talk().one_by_one(cases)[1]
    assert cached == tokens_of(talk(), cases[0]) - 31


def test_a_record_that_is_lost(talk: Callable[..., Talk]) -> None:
    turns = talk().turns(20, SHORT, 30)
    engine = talk().engine
    engine.reset_caches()
    for case in turns[:2]:
        talk().agree([case])
        engine.reset_caches()
    with started_over(engine):
        assert talk().agree(turns[:1])[0].preemptions == 1


@pytest.mark.parametrize("calls", [2, 5])
def test_preempted_without_its_record(talk: Callable[..., Talk], calls: int) -> None:
    """It is encoded again, from data that the worker did not get at first."""
    turns = talk().turns(20, SHORT, 30)
    talk().one_by_one(turns[:1])
    with started_over(talk().engine, calls):
        (answer,) = talk().agree([turns[1]])
    assert answer.preemptions == 1
    assert answer.cached == tokens_of(talk(), turns[0])


@contextmanager
def started_over(engine: StagedEngine, calls: int = 4) -> Iterator[None]:
    """Before one of the next steps all requests are preempted, and nothing stays cached."""
    scheduler, left = engine.scheduler, [calls]
    stock = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            assert scheduler.reset_prefix_cache(reset_running_requests=True)
            engine.llm.llm_engine.reset_encoder_cache()
        return stock(*args, **kwargs)

    with mock.patch.object(scheduler, "schedule", schedule):
        yield
    assert left[0] <= 0
