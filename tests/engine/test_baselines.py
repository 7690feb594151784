"""The methods that METok is compared with, in the engine: each answers as naive code does.

Visual rows of the dense input come from the engine's own encoder. Which of them stay, and the
decoder's answer, come from `tests.baselines` and `tests.reference` alone.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.baselines import random
from metok_vllm.config.methods import ENCODER_RULES, EVS, FASTV, VCAST, VIDCOM2
from metok_vllm.server.chat.report import EngineFacts, metok_report
from tests.baselines import fastv, naive
from tests.engine.rendered import render
from tests.engine.staged import BLOCK, NEW_TOKENS, StagedEngine
from tests.engine.staged_expected import first_without_ties, without_ties
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, make_prompt
from tests.reference.decoder import Generated, generate
from tests.reference.staged_checkpoint import embed_prompt

pytestmark = pytest.mark.slow

BOUNDARIES, STEP, PER_FRAME = (2, 4, 6), 512, 16
# Float32 sums in another order and, in batches, in other shapes.
ALONE, BATCHED = 5e-4, 1e-3
LONG, SHORT, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Picture(3, (1,))
FRAMES = sum(LONG.lengths)


@pytest.fixture(scope="module")
def engine(short_step: StagedEngine) -> StagedEngine:
    return short_step


def rule(name: str, keep: float = 0.25) -> dict[str, Any]:
    return {"rule": name, "rule_keep": keep}


def expected(engine: StagedEngine, prompt: Any) -> Generated:
    """The answer of naive code to a prompt with another method than METok's."""
    settings = prompt["mm_processor_kwargs"]["metok"]
    got = render(engine, prompt)
    if settings["rule"] == FASTV:
        videos = [
            fastv.video_at(start, len(got.visual[start]), settings["rule_keep"], len(got.ids))
            for start in got.videos
        ]
        embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
        return fastv.generate(engine.reference, embeds_ND, videos, BOUNDARIES, NEW_TOKENS)
    for start, video in zip(got.videos, got.plan.videos, strict=True):
        got.visual[start] = by_rule(engine, prompt, got.videos.index(start), video.key)
    embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
    return generate(engine.reference, embeds_ND, [], BOUNDARIES, NEW_TOKENS, ())


def by_rule(engine: StagedEngine, prompt: Any, number: int, key: str) -> Tensor:
    """The rows of one video of the dense prompt that its method keeps, newline last."""
    settings = prompt["mm_processor_kwargs"]["metok"]
    dense = render(engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})
    rows_MD = dense.visual[dense.videos[number]]
    x_TPD = rows_MD[:-1].unflatten(0, (-1, PER_FRAME))
    keep = math.ceil(settings["rule_keep"] * (len(rows_MD) - 1))  # exact for the shares used here
    if settings["rule"] == EVS:
        index = naive.evs(x_TPD.tolist(), keep)
    elif settings["rule"] == VIDCOM2:
        index = naive.vidcom2(x_TPD.tolist(), keep)
    elif settings["rule"] == VCAST:
        index = naive.vcast(x_TPD.tolist(), keep)
    else:
        index = random.select(x_TPD, keep, key).tolist()
    return rows_MD[[*index, len(rows_MD) - 1]]


def ruled(engine: StagedEngine, parts: Parts, options: dict[str, Any]) -> tuple[Any, Generated]:
    """The first prompt of these parts without near ties, and its expected answer."""
    return first_without_ties(parts, options, partial(expected, engine))


@pytest.mark.parametrize("keep", [0.0625, 0.25, 1.0])
@pytest.mark.parametrize("name", ENCODER_RULES)
def test_the_encoder_returns_the_rows_that_the_method_keeps(
    engine: StagedEngine, name: str, keep: float
) -> None:
    prompt = make_prompt((9, LONG, 7, SHORT, 30), rule(name, keep))
    got = render(engine, prompt)
    for number, (start, video) in enumerate(zip(got.videos, got.plan.videos, strict=True)):
        rows_ND = by_rule(engine, prompt, number, video.key)
        assert len(rows_ND) == math.ceil(keep * video.num_frames * PER_FRAME) + 1
        torch.testing.assert_close(got.visual[start], rows_ND)


SHAPES: dict[str, Parts] = {
    "text on both sides": (9, LONG, 30),
    "video last": (12, LONG),
    "two videos": (7, SHORT, 9, LONG, 15),
    "image before": (4, PICTURE, 6, SHORT, 20),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*ENCODER_RULES, FASTV])
def test_answers_are_the_naive_ones_and_repeat(engine: StagedEngine, name: str, shape: str) -> None:
    prompt, right = ruled(engine, SHAPES[shape], rule(name))
    answers = []
    for _ in range(2):
        engine.reset_caches()
        answers.append(engine.answer_alone(prompt))
    first, again = answers
    assert first.error(right) <= ALONE
    assert torch.equal(first.logprobs_SV, again.logprobs_SV)


@pytest.mark.parametrize("keep", [0.03, 0.5, 1.0])
def test_fastv_keeps_any_share(engine: StagedEngine, keep: float) -> None:
    prompt, right = ruled(engine, (9, LONG, 30), rule(FASTV, keep))
    assert engine.answer_alone(prompt).error(right) <= ALONE


def test_fastv_ranks_by_the_last_token(engine: StagedEngine) -> None:
    """METok's score, the mean over the question, would keep other tokens."""
    got = render(engine, make_prompt((9, LONG, 30), rule(FASTV)))
    video = fastv.video_at(got.videos[0], FRAMES * PER_FRAME + 1, 0.25, len(got.ids))
    embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
    args = (engine.reference, embeds_ND, [video], BOUNDARIES, 1)
    assert fastv.generate(*args).kept[1] != generate(*args).kept[1]


def report_on(engine: StagedEngine, prompt: Any) -> dict[str, Any]:
    """The `metok` object of the response."""
    got = render(engine, prompt)
    facts = EngineFacts.of(engine.llm.llm_engine.vllm_config, engine.model.metok)
    return metok_report(
        got.plan,
        got.plan.prompt_plan(len(got.ids)),
        [],
        engine=facts,
        prompt_tokens=len(got.ids),
        fallback=None,
        unpruned=None,
    )


@pytest.mark.parametrize("name", [*ENCODER_RULES, FASTV])
def test_rows_blocks_and_the_report_of_them(engine: StagedEngine, name: str) -> None:
    """Each stage has two layers and one cache group, so its blocks count once."""
    prompt = make_prompt((9, LONG, 30), rule(name))
    report = report_on(engine, prompt)
    held, rows = engine.measure(prompt)
    dense = FRAMES * PER_FRAME + 1
    visual = [math.ceil(dense / 4)] * 4 if name == FASTV else [(dense - 1) // 4 + 1] * 4
    if name == FASTV:
        visual[0] = dense
    lengths = [tokens + 39 for tokens in visual]
    assert rows == [length for length in lengths for _ in range(2)]
    assert held == [-(-(length + 1) // BLOCK) for length in lengths]
    assert (report["preset"], report["rule"], report["events"]) == (name, name, [])
    assert report["stages"] == []
    assert report["visual_tokens"] == {
        "dense": dense,
        "encoded": visual[0],
        "stages": visual if name == FASTV else visual[:1],
        "decode": visual if name == FASTV else visual[:1],
    }
    assert report["kv_blocks"]["decode"] == sum(held)
    assert report["kv_blocks"]["dense"] == 4 * -(-(dense + 39) // BLOCK)
    flops = report["decoder_prefill_flops"]
    assert flops["metok"] < 0.6 * flops["dense"]


KINDS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "metok": ((9, LONG, 30), {}),
    "stages 2 and 3": ((5, SHORT, 33), {"stages": [2, 3], "decode_keep": 0.25}),
    "switched off": ((5, SHORT, 31), OFF),
    "text": ((70,), {}),
}


def test_a_batch_of_all_methods_answers_as_each_alone(engine: StagedEngine) -> None:
    """The expected answers of METok, dense and text prompts do not involve the other methods."""
    prompts = [without_ties(engine, *spec) for spec in KINDS.values()]
    for name in (*ENCODER_RULES, FASTV):
        prompts.append(ruled(engine, (6, SHORT, 20), rule(name)))
    prompts.append(ruled(engine, SHAPES["two videos"], rule(FASTV, 0.5)))
    for order in (prompts, prompts[::-1], prompts[1::2] + prompts[::2]):
        engine.reset_caches()
        for answer, (_, right) in zip(
            engine.answer([prompt for prompt, _ in order]), order, strict=True
        ):
            assert answer is not None
            assert answer.error(right) <= BATCHED


def test_methods_do_not_share_selections_of_one_video(engine: StagedEngine) -> None:
    engine.reset_caches()
    for name in (*ENCODER_RULES, FASTV, *ENCODER_RULES):
        prompt, right = ruled(engine, (40, SHORT, 20), rule(name))
        assert engine.answer_alone(prompt).error(right) <= ALONE


@pytest.mark.parametrize("shape", [(20, LONG, STEP), (STEP - 100, LONG, 30), (300, LONG)])
def test_fastv_prunes_a_prompt_longer_than_a_step(engine: StagedEngine, shape: Parts) -> None:
    engine.reset_caches()
    prompt, right = ruled(engine, shape, rule(FASTV))
    assert engine.answer_alone(prompt).error(right) <= BATCHED
