"""Qwen3.5 with METok's stage 1: rows and positions by the definition, answers by Hugging Face.

vLLM's CPU kernels of Gated DeltaNet take bfloat16 alone, so answers are compared by the mean error
of their log-probabilities. In mixtures of experts a rounding may choose another expert: their
answers are not compared.

Shape suffixes: N prompt tokens, M tokens of a video, D features, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from vllm.config import VllmConfig

from metok_vllm.models.positions import MAX_SPAN
from tests.engine.engines import EnginePool, reset_caches
from tests.engine.mrope_expected import (
    DecoderInput,
    decoder_input,
    frame_of_video,
    medium_of,
    rows_of_video,
)
from tests.engine.rendered import Rendered, render
from tests.engine.staged import StagedEngine
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, Picture, make_prompt
from tests.reference import stage1
from tests.reference.decoder import LanguageModel
from tests.reference.mrope import Positions
from tests.reference.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from tests.reference.qwen_vl_checkpoint import load_model, write_checkpoint
from tests.reference.staged_checkpoint import language_model

pytestmark = pytest.mark.slow

STEP, NEW_TOKENS = 512, 8
CLIP, LARGE, PICTURE = (
    Clip(5, (3, 6, 2, 5, 4)),
    Clip(6, (4, 3, 5), (256, 384)),
    Picture(3, (1,)),
)
METOK: dict[str, Parts] = {
    "METok": (7, CLIP, 20),
    "METok beside an image": (4, PICTURE, 3, CLIP, 20),
    "METok in chunks": (300, LARGE, 150),
}
OTHERS: dict[str, Parts] = {
    "text": (40,),
    "image": (6, PICTURE, 30),
    "dense": (7, CLIP, 20),
    "image and dense": (4, PICTURE, 3, CLIP, 20),
}


@dataclass(frozen=True)
class Setting:
    """An engine with METok's default settings, vLLM's own, and the decoder in Hugging Face."""

    family: str
    metok: StagedEngine
    plain: StagedEngine
    reference: LanguageModel


FAMILIES = [QWEN3_5, pytest.param(QWEN3_5_MOE, marks=pytest.mark.thorough)]


@pytest.fixture(scope="module", params=FAMILIES)
def setting(
    request: pytest.FixtureRequest, engines: EnginePool, tmp_path_factory: pytest.TempPathFactory
) -> Setting:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    write_checkpoint(folder, request.param)
    reference = language_model(load_model(folder))

    def start(**settings: Any) -> StagedEngine:
        return StagedEngine(
            engines,
            folder,
            reference,
            None,
            dtype="bfloat16",
            max_num_batched_tokens=STEP,
            num_gpu_blocks_override=256,
            **settings,
        )

    return Setting(request.param, start(additional_config={"metok": {}}), start(), reference)


@dataclass(frozen=True)
class Read:
    """Greedy tokens with the log-probabilities of the whole vocabulary, and cached tokens."""

    tokens: list[int]
    logprobs_SV: Tensor
    cached: int


def answer(engine: StagedEngine, prompts: Sequence[Any]) -> list[Read]:
    """Answers to prompts in flight together."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True, logprobs=-1, detokenize=False
    )
    outputs = engine.llm.generate(list(prompts), params, use_tqdm=False)
    found = []
    for output in outputs:
        completion = output.outputs[0]
        rows = [[row[token].logprob for token in range(len(row))] for row in completion.logprobs]
        cached = output.num_cached_tokens
        found.append(Read(list(completion.token_ids), torch.tensor(rows), cached))
    return found


def prompt_of(parts: Parts, options: dict[str, Any] | None = None) -> Any:
    return make_prompt(parts, options, 0, QWEN)


@dataclass(frozen=True)
class Expected:
    """A prompt as the engine renders it, with METok and dense, and the decoder's input."""

    rendered: Rendered
    dense: Rendered
    input: DecoderInput


def expected(setting: Setting, parts: Parts, options: dict[str, Any]) -> Expected:
    config = setting.metok.model.metok.for_request(options)
    rendered = render(setting.metok, prompt_of(parts, options))
    dense = render(setting.metok, prompt_of(parts, OFF))
    given = decoder_input(setting.reference, setting.family, config, rendered, dense)
    return Expected(rendered, dense, given)


@torch.no_grad()
def logprobs_of(
    reference: LanguageModel, embeds_ND: Tensor, rotary: Positions, read: Read
) -> Tensor:
    """Hugging Face's log-probabilities [S, V] of the tokens that the engine answered."""
    answer_SD = reference.decoder.embed_tokens(torch.tensor(read.tokens[:-1]))
    whole_ND = torch.cat([embeds_ND.float(), answer_SD])
    places_3N = torch.tensor([rotary.at(index) for index in range(len(whole_ND))]).T
    output = reference.decoder(inputs_embeds=whole_ND[None], position_ids=places_3N[:, None])
    last_SD = output.last_hidden_state[0, len(embeds_ND) - 1 :]
    logprobs_SV: Tensor = reference.lm_head(last_SD).log_softmax(-1)
    return logprobs_SV


def test_answers_equal_hugging_face(setting: Setting) -> None:
    """All kinds of requests in flight together, the longest in chunks; then each prompt again."""
    if setting.family == QWEN3_5_MOE:
        pytest.skip("a rounding may choose another expert")
    kinds = [(parts, OFF) for parts in OTHERS.values()] + [(parts, {}) for parts in METOK.values()]
    found = answer(setting.metok, [prompt_of(*kind) for kind in kinds])
    for kind, read in zip(kinds, found, strict=True):
        given = expected(setting, *kind).input
        wanted_SV = logprobs_of(setting.reference, given.embeds_ND, given.rotary, read)
        error = rms(wanted_SV - read.logprobs_SV)
        assert error < 0.055, kind
        best_S = wanted_SV.max(dim=-1).values
        chosen_S = wanted_SV.gather(1, torch.tensor(read.tokens)[:, None])[:, 0]
        assert float((best_S - chosen_S).max()) < 0.25, kind
        if kind == (METOK["METok"], {}):
            counted = Positions.counted(len(given.embeds_ND))
            wrong_SV = logprobs_of(setting.reference, given.embeds_ND, counted, read)
            assert rms(wrong_SV - read.logprobs_SV) > 2 * error


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@pytest.mark.parametrize("kind", OTHERS)
def test_without_metok_the_answer_is_vllms_own(setting: Setting, kind: str) -> None:
    """Token by token; not with its caches warm, as METok's videos have others."""
    for engine in (setting.metok, setting.plain):
        reset_caches(engine.llm)
    (wanted,) = answer(setting.plain, [prompt_of(OTHERS[kind])])
    (found,) = answer(setting.metok, [prompt_of(OTHERS[kind], OFF)])
    assert found.tokens == wanted.tokens
    assert torch.equal(found.logprobs_SV, wanted.logprobs_SV)


@contextmanager
def decoder_calls(engine: StagedEngine) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Positions [3, N] and embeddings [N, D] that the decoder is given in each step."""
    calls: list[tuple[Tensor, Tensor]] = []
    decoder = engine.model.language_model.model
    forward = decoder.forward

    def watched(**given: Any) -> Any:
        calls.append((given["positions"].clone(), given["inputs_embeds"].clone()))
        return forward(**given)

    with mock.patch.object(decoder, "forward", watched):
        yield calls


@pytest.mark.parametrize("kind", METOK)
def test_the_decoder_is_given_what_the_definition_says(setting: Setting, kind: str) -> None:
    """In every chunk: each token at its position in the dense prompt, means of areas, text."""
    wanted = expected(setting, METOK[kind], {})
    reset_caches(setting.metok.llm)
    with decoder_calls(setting.metok) as calls:
        answer(setting.metok, [prompt_of(METOK[kind], {})])
    prompt = calls[: 1 - NEW_TOKENS]
    # vLLM computes a last block that is not full in a step of its own, for its cache of states.
    assert len(prompt) == (3 if kind == "METok in chunks" else 2)
    positions_3N = torch.cat([positions for positions, _ in prompt], dim=1)
    assert positions_3N.T.tolist() == [list(place) for place in wanted.input.rotary.places]
    after = len(wanted.rendered.ids) + wanted.input.rotary.delta
    assert calls[len(prompt)][0][:, 0].tolist() == [after] * 3

    embeds_ND = torch.cat([embeds for _, embeds in prompt]).float()
    assert torch.equal(embeds_ND, wanted.input.embeds_ND.float())
    start, rows_MD = video_rows(setting, wanted)
    found_MD = embeds_ND[start : start + len(rows_MD)]
    torch.testing.assert_close(found_MD, rows_MD, atol=2e-3, rtol=8e-3)


def video_rows(setting: Setting, wanted: Expected) -> tuple[int, Tensor]:
    """Where the only video starts, and its rows [M, D] by the reference's stage 1."""
    config = setting.metok.model.metok.for_request({})
    (placed,) = [placed for placed in wanted.dense.media if placed.modality == "video"]
    medium = medium_of(setting.family, placed)
    frame = frame_of_video(wanted.dense.ids, placed, medium)
    patches_TPD = rows_of_video(wanted.dense, placed, medium).float()
    means = patches_TPD.double().mean(1).tolist()
    event_of = stage1.event_of_frames(stage1.adjacent_cosines(means), config.num_events)
    relevance = stage1.fallback_relevance(means, event_of)
    ratio, per_event = config.key_event_ratio, config.key_frames_per_event
    natural = stage1.natural_classes(event_of, relevance, ratio, per_event)
    fine, medium_frames, _ = stage1.budget(len(means), config.num_events, ratio, per_event)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium_frames)
    texts: tuple[list[Tensor], list[Tensor]] = ([], [])
    at = placed.start
    embed = setting.reference.decoder.embed_tokens
    for before, after in zip(frame.before, frame.after, strict=True):
        for number, part in ((before, texts[0]), (after, texts[1])):
            part.append(embed(torch.tensor(wanted.dense.ids[at : at + number])).detach())
            at += number + (patches_TPD.shape[1] if part is texts[0] else 0)
    packed = stage1.pack(
        patches_TPD,
        classes,
        event_of,
        patches_TPD[0, 0],
        frame.grid,
        frame.strides(config),
        frame.mode,
        frame.newlines,
        before=texts[0],
        after=texts[1],
    )
    return wanted.rendered.videos[0], packed.tokens_ND


def test_a_repeated_request_reads_the_prefix_cache_and_another_setting_does_not(
    setting: Setting,
) -> None:
    """Blocks of the prefix cache hold states of the linear layers beside keys and values."""
    reset_caches(setting.metok.llm)
    parts = (64, *METOK["METok"])
    (first,) = answer(setting.metok, [prompt_of(parts, {})])
    (again,) = answer(setting.metok, [prompt_of(parts, {})])
    assert first.cached == 0
    assert again.cached > 250
    assert again.tokens == first.tokens
    (other,) = answer(setting.metok, [prompt_of(parts, {"num_events": 2})])
    assert other.cached <= 64 + 7 + len(QWEN.video)


def test_default_settings_leave_vllms_engine_as_it_is(setting: Setting) -> None:
    engine = setting.metok
    assert engine.model.metok.stages == (1,)
    assert type(engine.llm.llm_engine.vllm_config) is VllmConfig
    assert type(engine.runner) is type(setting.plain.runner)
    assert type(engine.scheduler) is type(setting.plain.scheduler)
    layers = engine.model.language_model.model.layers
    rotaries = [layer.self_attn.rotary_emb for layer in layers if hasattr(layer, "self_attn")]
    assert len(rotaries) == 2
    assert all(len(rotary.cos_sin_cache) >= 2048 + MAX_SPAN for rotary in rotaries)
