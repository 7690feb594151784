"""Other methods than METok on Qwen's families: text between frames stays, positions are kept.

Which tokens stay, and the answer, come from `tests.baselines` and `tests.reference` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from metok_vllm.baselines import random
from metok_vllm.config.methods import ENCODER_RULES, EVS, FASTV, VCAST, VIDCOM2
from tests.baselines import fastv, naive
from tests.engine.checkpoints import MROPE_STEPS
from tests.engine.mrope_expected import (
    embedded,
    frame_of_video,
    placed_media,
    rows_of_video,
)
from tests.engine.rendered import Rendered, render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import first_without_ties, without_ties
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, Picture, make_prompt
from tests.reference import mrope
from tests.reference.decoder import Generated, generate
from tests.reference.mrope import VIDEO, Kept
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL
from tests.reference.stage1 import exact

pytestmark = pytest.mark.slow

TOLERANCE, NEW_TOKENS, KEEP = 1e-3, 12, 0.25
PARTS: Parts = (9, Clip(5, (3, 6, 2, 5)), 7, Picture(3, (1,)), 4, Clip(9, (2, 3), (64, 224)), 30)
RULES = (*ENCODER_RULES, FASTV)


@pytest.fixture(
    scope="module", params=[QWEN3_VL, pytest.param(QWEN2_5_VL, marks=pytest.mark.thorough)]
)
def engine(
    request: pytest.FixtureRequest, mrope_engine: Callable[..., StagedEngine]
) -> StagedEngine:
    return mrope_engine(request.param)


def both(engine: StagedEngine, prompt: Any) -> tuple[Rendered, Rendered]:
    """A prompt with its method, and its dense form."""
    return render(engine, prompt), render(engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})


def kept_of(
    engine: StagedEngine, settings: dict[str, Any], got: Rendered, dense: Rendered
) -> list[Kept]:
    """The tokens of each dense video that enter the decoder: all of them with FastV."""
    width = engine.model.config.get_text_config().hidden_size
    found = []
    for number, (placed, medium) in enumerate(
        placed_media(engine.model.config.model_type, dense, "video")
    ):
        frame = frame_of_video(dense.ids, placed, medium)
        x_TPD = rows_of_video(dense, placed, medium)[..., :width]
        frames, size = x_TPD.shape[:2]
        key = got.plan.videos[number].key
        keep = math.ceil(exact(settings["rule_keep"]) * frames * size)
        index = select(settings["rule"], x_TPD, keep, key)
        features = [[i % size for i in index if i // size == t] for t in range(frames)]
        tokens = mrope.kept_tokens(features, size, frame.before, frame.after)
        found.append(Kept(placed.start, placed.length, tokens))
    return found


def select(rule: str, x_TPD: torch.Tensor, keep: int, key: str) -> list[int]:
    if rule == FASTV:
        return list(range(x_TPD.shape[0] * x_TPD.shape[1]))
    naive_rules = {EVS: naive.evs, VIDCOM2: naive.vidcom2, VCAST: naive.vcast}
    if rule in naive_rules:
        return naive_rules[rule](x_TPD.tolist(), keep)
    return random.select(x_TPD, keep, key).tolist()


def expected(engine: StagedEngine, prompt: Any) -> Generated:
    """The answer of naive code."""
    settings = prompt["mm_processor_kwargs"]["metok"]
    got, dense = both(engine, prompt)
    family = engine.model.config.model_type
    media = [placed_media(family, dense, kind) for kind in ("image", "video")]
    images, videos = ([medium for _, medium in found] for found in media)
    kept = kept_of(engine, settings, got, dense)
    places = mrope.dense_positions(family, dense.ids, images, videos)
    rotary, ids = mrope.kept_positions(places, kept), mrope.kept_of_prompt(dense.ids, kept)
    embeds_ND, deepstack = embedded(engine.reference, ids, got)
    boundaries = MROPE_STEPS[family][0]
    given = (engine.reference, embeds_ND)
    if settings["rule"] != FASTV:
        return generate(*given, [], boundaries, NEW_TOKENS, (), rotary=rotary, deepstack=deepstack)
    of_fastv = []
    for start, video in zip(got.videos, kept, strict=True):
        tokens = range(len(video.tokens))
        text = [token for token in tokens if ids[start + token] != VIDEO]
        of_fastv.append(fastv.video_at(start, len(tokens), settings["rule_keep"], len(ids), text))
    return fastv.generate(*given, of_fastv, boundaries, NEW_TOKENS, rotary, deepstack)


@pytest.mark.parametrize("rule", RULES)
def test_what_enters_the_decoder(engine: StagedEngine, rule: str) -> None:
    """Selected features as they were, in order of place, and every token of text in its own."""
    settings = {"rule": rule, "rule_keep": KEEP}
    got, dense = both(engine, make_prompt(PARTS, settings, media=QWEN))
    kept = kept_of(engine, settings, got, dense)
    ids = mrope.kept_of_prompt(dense.ids, kept)
    embeds_ND, deepstack = embedded(engine.reference, ids, dense_rows_of(got, dense, kept))
    found_ND, found_deepstack = embedded(engine.reference, ids, got)
    torch.testing.assert_close(found_ND, embeds_ND)
    torch.testing.assert_close(found_deepstack, deepstack)
    for number, (start, video) in enumerate(zip(got.videos, kept, strict=True)):
        plan = got.plan.videos[number]
        assert len(video.tokens) == plan.encoded_tokens == len(got.visual[start])
        assert video.tokens == sorted(video.tokens)


def dense_rows_of(got: Rendered, dense: Rendered, kept: list[Kept]) -> Rendered:
    """`got` with the rows of the dense prompt at its features; text has no row there."""
    row_of = {start + i: row for start, rows in dense.visual.items() for i, row in enumerate(rows)}
    visual = dict(got.visual)
    for start, video in zip(got.videos, kept, strict=True):
        del visual[start]
        for number, token in enumerate(video.tokens):
            if video.start + token in row_of:
                visual[start + number] = row_of[video.start + token][None]
    return Rendered(got.ids, visual, got.videos, got.decisions, got.media, got.plan)


def test_a_batch_of_all_methods_answers_as_naive_code(engine: StagedEngine) -> None:
    expect = partial(expected, engine)
    cases = [
        first_without_ties(PARTS, {"rule": rule, "rule_keep": KEEP}, expect, QWEN) for rule in RULES
    ]
    cases.append(without_ties(engine, PARTS, {}, NEW_TOKENS))
    engine.reset_caches()
    answers = engine.answer([prompt for prompt, _ in cases], NEW_TOKENS)
    for rule, answer, (_, right) in zip((*RULES, "metok"), answers, cases, strict=True):
        assert answer is not None
        assert answer.error(right) <= TOLERANCE, rule


@pytest.mark.parametrize("keep", [0.02, 1.0])
def test_fastv_keeps_text_at_any_share(engine: StagedEngine, keep: float) -> None:
    """Also where the video comes from vLLM's encoder cache."""
    expect, parts = partial(expected, engine), (9, Clip(5, (3, 6, 2, 5)), 30)
    prompt, right = first_without_ties(parts, {"rule": FASTV, "rule_keep": keep}, expect, QWEN)
    engine.reset_caches()
    for _ in range(2):
        assert engine.answer_alone(prompt, NEW_TOKENS).error(right) <= TOLERANCE
