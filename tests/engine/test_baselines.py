"""The rules to compare METok with, through the engine: each as naive code answers, alone and mixed.

Visual rows of the dense input come from the engine's own encoder; which of them stay, and what the
decoder makes of them, is decided by `tests.baselines` and `tests.reference` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.baselines import random
from metok_vllm.config.methods import ENCODER_RULES, EVS, FASTV, VIDCOM2
from metok_vllm.models.request import FIELD
from metok_vllm.server.chat.report import EngineFacts, metok_report
from tests.baselines import fastv, naive
from tests.engine.staged import BLOCK, NEW_TOKENS, StagedEngine, decided, is_decided
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, laid_out
from tests.reference.decoder import Generated, generate
from tests.reference.staged_checkpoint import (
    embed_prompt,
    language_model,
    load_model,
    write_checkpoint,
)

pytestmark = pytest.mark.slow

BOUNDARIES, STEP, PER_FRAME = (2, 4, 6), 640, 16
# Float32 in another order of summation and, in batches, in other shapes.
ALONE, BATCHED = 2e-4, 1e-3
LONG, SHORT, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Picture(3, (1,))
FRAMES = sum(LONG.lengths)


@dataclass(frozen=True)
class Rendered:
    """A prompt as the engine is given it: tokens, visual rows by first position, the plan."""

    ids: list[int]
    visual: dict[int, Tensor]
    videos: list[int]  # first positions of those among the visual rows that are videos
    plan: Any


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StagedEngine]:
    folder: Path = tmp_path_factory.mktemp("rules") / "model"
    write_checkpoint(folder)
    reference = language_model(load_model(folder))
    engine = StagedEngine(folder, reference, BOUNDARIES, max_num_batched_tokens=STEP)
    yield engine
    engine.stop()


def rule(name: str, keep: float = 0.25) -> dict[str, Any]:
    return {"rule": name, "rule_keep": keep}


def render(engine: StagedEngine, prompt: Any) -> Rendered:
    inputs = engine.llm.llm_engine.renderer.render_cmpl([prompt], skip_mm_cache=True)[0]
    visual, videos = {}, []
    for modality, items in inputs.get("mm_kwargs", {}).items():
        for item, place in zip(items, inputs["mm_placeholders"][modality], strict=True):
            fields = {name: field.data[None] for name, field in item.items() if name != FIELD}
            if FIELD in item:
                fields[FIELD] = [item[FIELD].data]
                videos.append(place.offset)
            with torch.inference_mode():
                (rows_MD,) = engine.model.embed_multimodal(**fields)
            assert len(rows_MD) == place.length
            visual[place.offset] = rows_MD.clone()
    return Rendered(list(inputs["prompt_token_ids"]), visual, videos, inputs.get("metok"))


def expected(engine: StagedEngine, prompt: Any) -> Generated:
    """What naive code answers to a prompt whose rule is not METok's."""
    wanted = prompt["mm_processor_kwargs"]["metok"]
    got = render(engine, prompt)
    if wanted["rule"] == FASTV:
        videos = [
            fastv.video_at(start, len(got.visual[start]), wanted["rule_keep"], len(got.ids))
            for start in got.videos
        ]
        embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
        return fastv.generate(engine.reference, embeds_ND, videos, BOUNDARIES, NEW_TOKENS)
    for start, video in zip(got.videos, got.plan.videos, strict=True):
        got.visual[start] = by_rule(engine, prompt, got.videos.index(start), video.key)
    embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
    return generate(engine.reference, embeds_ND, [], BOUNDARIES, NEW_TOKENS, ())


def by_rule(engine: StagedEngine, prompt: Any, number: int, key: str) -> Tensor:
    """Rows of one video of the dense prompt that its rule keeps, newline last."""
    wanted = prompt["mm_processor_kwargs"]["metok"]
    dense = render(engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})
    rows_MD = dense.visual[dense.videos[number]]
    x_TPD = rows_MD[:-1].unflatten(0, (-1, PER_FRAME))
    keep = math.ceil(wanted["rule_keep"] * (len(rows_MD) - 1))  # exact for the shares used here
    if wanted["rule"] == EVS:
        index = naive.evs(x_TPD.tolist(), keep)
    elif wanted["rule"] == VIDCOM2:
        index = naive.vidcom2(x_TPD.tolist(), keep)
    else:
        index = random.select(x_TPD, keep, key).tolist()
    return rows_MD[[*index, len(rows_MD) - 1]]


def ruled(engine: StagedEngine, parts: Parts, options: Mapping[str, Any]) -> tuple[Any, Generated]:
    """The first prompt of this kind that does not hang on last bits, with its right answer."""
    for seed in range(8):
        prompt = laid_out(parts, options, seed)
        answer = expected(engine, prompt)
        if is_decided(answer):
            return prompt, answer
    raise AssertionError(f"eight near ties in a row: {parts}, {options}")


@pytest.mark.parametrize("keep", [0.0625, 0.25, 1.0])
@pytest.mark.parametrize("name", ENCODER_RULES)
def test_the_encoder_gives_the_rows_of_the_rule(
    engine: StagedEngine, name: str, keep: float
) -> None:
    prompt = laid_out((9, LONG, 7, SHORT, 30), rule(name, keep))
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
        engine.forget_caches()
        answers += engine.answer([prompt])
    first, again = answers
    assert first is not None
    assert again is not None
    assert first.error(right) <= ALONE
    assert torch.equal(first.logprobs_SV, again.logprobs_SV)


@pytest.mark.parametrize("keep", [0.03, 0.5, 1.0])
def test_fastv_keeps_any_share(engine: StagedEngine, keep: float) -> None:
    prompt, right = ruled(engine, (9, LONG, 30), rule(FASTV, keep))
    (answer,) = engine.answer([prompt])
    assert answer is not None
    assert answer.error(right) <= ALONE


def test_fastv_ranks_by_the_last_token(engine: StagedEngine) -> None:
    """Which tokens stay differs from what METok's rule, the question's mean, would keep."""
    got = render(engine, laid_out((9, LONG, 30), rule(FASTV)))
    video = fastv.video_at(got.videos[0], FRAMES * PER_FRAME + 1, 0.25, len(got.ids))
    embeds_ND = embed_prompt(engine.reference, got.ids, got.visual)
    args = (engine.reference, embeds_ND, [video], BOUNDARIES, 1)
    assert fastv.generate(*args).kept[1] != generate(*args).kept[1]


@dataclass(frozen=True)
class Measured:
    """Blocks by cache group when decoding has begun, the prefill's rows by layer, the report."""

    held: list[int]
    rows: list[int]
    report: dict[str, Any]


def measure(engine: StagedEngine, options: Mapping[str, Any]) -> Measured:
    from vllm import SamplingParams

    prompt = laid_out((9, LONG, 30), options)
    got = render(engine, prompt)
    facts = EngineFacts.of(engine.llm.llm_engine.vllm_config, engine.model.metok)
    report = metok_report(
        got.plan,
        got.plan.prompt_plan(len(got.ids), facts.step_tokens),
        [],
        engine=facts,
        prompt_tokens=len(got.ids),
        fallback=None,
        unpruned=None,
    )
    rows: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _module, args: rows.append(len(args[1])))
        for layer in engine.model.language_model.model.layers
    ]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)
    engine.forget_caches()
    engine.llm.llm_engine.add_request("one", prompt, params)
    engine.llm.llm_engine.step()
    for hook in hooks:
        hook.remove()
    engine.llm.llm_engine.step()
    engine.check_books()
    (held,) = engine.held().values()
    engine.llm.llm_engine.abort_request(["one"])
    return Measured(held, rows, report)


@pytest.mark.parametrize("name", [*ENCODER_RULES, FASTV])
def test_rows_blocks_and_the_report_of_them(engine: StagedEngine, name: str) -> None:
    """One group of two layers a stage, so that blocks are counted once a stage."""
    measured = measure(engine, rule(name))
    dense = FRAMES * PER_FRAME + 1
    visual = [math.ceil(dense / 4)] * 4 if name == FASTV else [(dense - 1) // 4 + 1] * 4
    if name == FASTV:
        visual[0] = dense
    prompt = [tokens + 39 for tokens in visual]
    assert measured.rows == [rows for rows in prompt for _ in range(2)]
    assert measured.held == [-(-(rows + 1) // BLOCK) for rows in prompt]
    report = measured.report
    assert (report["preset"], report["rule"], report["events"]) == (name, name, [])
    assert report["stages"] == []
    assert report["visual_tokens"] == {
        "dense": dense,
        "encoded": visual[0],
        "stages": visual if name == FASTV else visual[:1],
        "decode": visual if name == FASTV else visual[:1],
    }
    assert report["kv_blocks"]["decode"] == sum(measured.held)
    assert report["kv_blocks"]["dense"] == 4 * -(-(dense + 39) // BLOCK)
    flops = report["decoder_prefill_flops"]
    assert flops["metok"] < 0.6 * flops["dense"]


KINDS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "metok": ((9, LONG, 30), {}),
    "stages 2 and 3": ((5, SHORT, 33), {"stages": [2, 3], "decode_keep": 0.25}),
    "switched off": ((5, SHORT, 31), OFF),
    "text": ((70,), {}),
}


def test_a_batch_of_all_rules_answers_as_each_alone(engine: StagedEngine) -> None:
    """Others are what they are without the rules: their right answers know nothing of them."""
    asked = [decided(engine, *spec) for spec in KINDS.values()]
    for name in (*ENCODER_RULES, FASTV):
        asked.append(ruled(engine, (6, SHORT, 20), rule(name)))
    asked.append(ruled(engine, SHAPES["two videos"], rule(FASTV, 0.5)))
    for order in (asked, asked[::-1], asked[1::2] + asked[::2]):
        engine.forget_caches()
        for answer, (_, right) in zip(
            engine.answer([prompt for prompt, _ in order]), order, strict=True
        ):
            assert answer is not None
            assert answer.error(right) <= BATCHED


def test_rules_about_one_video_do_not_share_what_they_selected(engine: StagedEngine) -> None:
    engine.forget_caches()
    for name in (*ENCODER_RULES, FASTV, *ENCODER_RULES):
        prompt, right = ruled(engine, (40, SHORT, 20), rule(name))
        (answer,) = engine.answer([prompt])
        assert answer is not None
        assert answer.error(right) <= ALONE


def test_a_prompt_longer_than_a_step_is_not_pruned_by_fastv(engine: StagedEngine) -> None:
    parts = (20, LONG, STEP)
    dense = decided(engine, parts, OFF)[1]
    prompt = laid_out(parts, rule(FASTV))
    got = render(engine, prompt)
    assert got.plan.prompt_plan(len(got.ids), STEP) is None
    (answer,) = engine.answer([prompt])
    assert answer is not None
    assert answer.error(dense) <= ALONE
