"""The naive decoder's answer to a prompt of a `StagedEngine`.

Visual rows come from the engine's own encoder, which test_reference.py compares with its
reference. How many tokens stay, and which, is decided by `tests.reference` alone.

Shape suffixes: D features, N prompt tokens, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from metok_vllm.config import METokConfig
from tests.engine import engines
from tests.engine.mrope_expected import DecoderInput, decoder_input
from tests.engine.rendered import render
from tests.engine.staged import BLOCK, NEW_TOKENS, StagedEngine
from tests.engine.staged_prompts import (
    LLAVA,
    OFF,
    Frame,
    Media,
    Parts,
    make_prompt,
    media_of,
    planned_video,
)
from tests.reference.decoder import Generated, LanguageModel, Video, generate
from tests.reference.mrope import Positions
from tests.reference.qwen_vl_config import ID_OF, QWEN_VL
from tests.reference.stage1 import EVENT, NOWHERE, ROW
from tests.reference.staged_checkpoint import embed_prompt

# Below these margins another order of summation may decide otherwise: selections by the
# difference of two scores, tokens by logits that agree to 1e-4.
LEAST_MARGIN, LEAST_LEAD = 2e-8, 5e-4
END_ID = 1021  # <|im_end|> of the untrained model


def config_of(engine: StagedEngine, prompt: Any) -> METokConfig:
    options = prompt.get("mm_processor_kwargs", {}).get("metok", {})
    config: METokConfig = engine.model.metok.for_request(options)
    return config


def frame_of(config: Any) -> Frame:
    """How the model of a Hugging Face configuration pools its frames."""
    vision = config.vision_config
    grid = int(vision.image_size // vision.patch_size)
    if config.model_type != "llava_qwen":
        return Frame(grid)
    where = {"grid": ROW, "one_token": EVENT, "no_token": NOWHERE}
    return Frame(grid, config.mm_spatial_pool_mode, where[config.mm_newline_position])


def expected_answer(
    engine: StagedEngine,
    prompt: Any,
    new_tokens: int = NEW_TOKENS,
    reference: LanguageModel | None = None,
) -> Generated:
    """The naive decoder's answer, with the engine's weights or those of `reference`."""
    reference = reference or engine.reference
    assert engine.boundaries is not None
    config = config_of(engine, prompt)
    given = given_to_decoder(engine, prompt, reference)
    end_id = ID_OF["<|im_end|>"] if engine.model.config.model_type in QWEN_VL else END_ID
    core = core_of(prompt_ids(engine, prompt), given.videos, config.focus, end_id)
    return generate(
        reference,
        given.embeds_ND,
        given.videos,
        engine.boundaries,
        new_tokens,
        config.stages if config.enabled else (),
        config.decode_keep,
        given.rotary,
        given.deepstack,
        core,
        1 if core is None and not config.evict_after else BLOCK,
        config.evict_after,
    )


def prompt_ids(engine: StagedEngine, prompt: Any) -> list[int]:
    """The token ids of a prompt with its videos in place."""
    return list(engines.render(engine.llm, prompt)["prompt_token_ids"])


def core_of(ids: list[int], videos: Sequence[Video], focus: str, end_id: int) -> int | None:
    """Tokens up to the end of the text that selects; None where that is the whole prompt.

    At least one token comes after the last video.
    """
    after = max((video.end for video in videos), default=len(ids)) + 1
    if focus == "conversation" and after <= len(ids):
        ends = [place for place in range(after - 1, len(ids)) if ids[place] == end_id]
        after = max(after, min(ends, default=len(ids)))
    return after if focus != "turn" and after < len(ids) else None


def given_to_decoder(engine: StagedEngine, prompt: Any, reference: LanguageModel) -> DecoderInput:
    """What the naive decoder is given of a prompt."""
    rendered = render(engine, prompt)
    config = config_of(engine, prompt)
    family = engine.model.config.model_type
    if family in QWEN_VL:
        dense = rendered
        if config.enabled and rendered.videos:
            dense = render(engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})
        return decoder_input(reference, family, config, rendered, dense)
    frame = frame_of(engine.model.config)
    length = len(rendered.ids)
    videos = []
    if config.enabled:
        for start, decision in zip(rendered.videos, rendered.decisions, strict=True):
            tokens = len(rendered.visual[start])
            videos.append(planned_video(start, decision, config, tokens, length, frame))
    embeds_ND = embed_prompt(reference, rendered.ids, rendered.visual)
    return DecoderInput(embeds_ND, videos, Positions.counted(length), [], [])


def without_ties(
    engine: StagedEngine, parts: Parts, options: Mapping[str, Any], new_tokens: int = NEW_TOKENS
) -> tuple[Any, Generated]:
    """The first prompt of these parts without near ties, and its expected answer."""
    expect = partial(expected_answer, engine, new_tokens=new_tokens)
    return first_without_ties(parts, options, expect, media_of(engine.model.config))


def series_without_ties(
    engine: StagedEngine, series: Sequence[Parts], options: Mapping[str, Any], new_tokens: int
) -> list[tuple[Any, Generated]]:
    """The same for several prompts of one seed, which so have words and scenes in common."""
    media = media_of(engine.model.config)
    for seed in range(8):
        prompts = [make_prompt(parts, options, seed, media) for parts in series]
        cases = [(p, expected_answer(engine, p, new_tokens)) for p in prompts]
        if all(is_clear(expected) for _, expected in cases):
            return cases
    raise AssertionError(f"eight near ties in a row: {series}, {options}")


def first_without_ties(
    parts: Parts,
    options: Mapping[str, Any],
    expect: Callable[[Any], Generated],
    media: Media = LLAVA,
) -> tuple[Any, Generated]:
    """Try seeds until neither a selection nor a token depends on the last bits of a sum."""
    for seed in range(8):
        prompt = make_prompt(parts, options, seed, media)
        expected = expect(prompt)
        if is_clear(expected):
            return prompt, expected
    raise AssertionError(f"eight near ties in a row: {parts}, {options}")


def is_clear(expected: Generated) -> bool:
    """Whether no selection and no token depends on the last bits of a sum."""
    best_S2 = expected.logprobs_SV.topk(2).values
    lead = float((best_S2[:, 0] - best_S2[:, 1]).min())
    return expected.margin > LEAST_MARGIN and lead > LEAST_LEAD
