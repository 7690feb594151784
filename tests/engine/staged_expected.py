"""The naive decoder's answer to a prompt of a `StagedEngine`.

Visual rows come from the engine's own encoder, which test_reference.py compares with its
reference. How many tokens stay, and which, is decided by `tests.reference` alone.

Shape suffixes: M tokens of a video, D features, N prompt tokens, S new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.models.request import FIELD
from tests.engine import engines
from tests.engine.staged import NEW_TOKENS, StagedEngine
from tests.engine.staged_prompts import Frame, Parts, make_prompt, planned_video
from tests.reference.decoder import Generated, LanguageModel, generate
from tests.reference.stage1 import EVENT, NOWHERE, ROW
from tests.reference.staged_checkpoint import embed_prompt

# Below these margins another order of summation may decide otherwise: selections by the
# difference of two scores, tokens by logits that agree to 1e-4.
LEAST_MARGIN, LEAST_LEAD = 2e-8, 5e-4


@dataclass(frozen=True)
class Rendered:
    """A prompt as the engine receives it.

    `visual` maps the first position of each video and image to its rows [M, D]; `videos` are the
    positions of the videos, `decisions` what stage 1 decided about each (None where it did not
    run). `plan` is the renderer's.
    """

    ids: list[int]
    visual: dict[int, Tensor]
    videos: list[int]
    decisions: list[Any]
    plan: Any


def render(engine: StagedEngine, prompt: Any) -> Rendered:
    """Run the renderer and the encoder on a prompt; the engine's stage-1 records stay as before."""
    inputs = engines.render(engine.llm, prompt)
    plan = inputs.get("metok")
    visual: dict[int, Tensor] = {}
    videos: list[int] = []
    decisions: list[Any] = []
    stage1 = engine.model.stage1
    remembered, stage1.events.entries = stage1.events.entries, stage1.events.entries.copy()
    for modality, items in inputs.get("mm_kwargs", {}).items():
        for item, place in zip(items, inputs["mm_placeholders"][modality], strict=True):
            fields = {name: field.data[None] for name, field in item.items() if name != FIELD}
            if FIELD in item:
                fields[FIELD] = [item[FIELD].data]
            with torch.inference_mode():
                (rows_MD,) = engine.model.embed_multimodal(**fields)
            assert len(rows_MD) == place.length
            visual[place.offset] = rows_MD.clone()
            if modality == "video":
                decisions.append(stage1.events.report(plan.videos[len(videos)].key))
                videos.append(place.offset)
    stage1.events.entries = remembered
    return Rendered(list(inputs["prompt_token_ids"]), visual, videos, decisions, plan)


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
    rendered = render(engine, prompt)
    config = config_of(engine, prompt)
    length = len(rendered.ids)
    stages, decode_keep = set(config.stages), config.decode_keep
    frame = frame_of(engine.model.config)
    videos = []
    if config.enabled:
        for start, decision in zip(rendered.videos, rendered.decisions, strict=True):
            tokens = len(rendered.visual[start])
            videos.append(planned_video(start, decision, config, tokens, length, frame))
    return generate(
        reference,
        embed_prompt(reference, rendered.ids, rendered.visual),
        videos,
        engine.boundaries,
        new_tokens,
        stages if config.enabled else (),
        decode_keep,
    )


def without_ties(
    engine: StagedEngine, parts: Parts, options: Mapping[str, Any], new_tokens: int = NEW_TOKENS
) -> tuple[Any, Generated]:
    """The first prompt of these parts without near ties, and its expected answer."""
    return first_without_ties(
        parts, options, partial(expected_answer, engine, new_tokens=new_tokens)
    )


def first_without_ties(
    parts: Parts, options: Mapping[str, Any], expect: Callable[[Any], Generated]
) -> tuple[Any, Generated]:
    """Try seeds until neither a selection nor a token depends on the last bits of a sum."""
    for seed in range(8):
        prompt = make_prompt(parts, options, seed)
        expected = expect(prompt)
        best_S2 = expected.logprobs_SV.topk(2).values
        lead = float((best_S2[:, 0] - best_S2[:, 1]).min())
        if expected.margin > LEAST_MARGIN and lead > LEAST_LEAD:
            return prompt, expected
    raise AssertionError(f"eight near ties in a row: {parts}, {options}")
