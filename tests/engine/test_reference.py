"""Visual tokens equal the naive reference; blocks held equal those of the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.models.request import FIELD
from metok_vllm.plan.accounting import request_blocks
from metok_vllm.plan.layers import StageLayout
from tests.engine.engines import core_of, model_of, render
from tests.engine.prompts import chat_prompt, video
from tests.reference.features import stage1_from_checkpoint
from tests.untrained import ALIGNMENT_DIR, MODEL_DIR

pytestmark = pytest.mark.slow

QUESTION = "a boat sails at sunset while the band plays and everybody waits for the fireworks " * 4


@pytest.fixture
def model(metok: Any) -> Iterator[Any]:
    """The engine's model; changes of its configuration are undone."""
    model = model_of(metok)
    before, stage1 = model.metok, model._stage1
    yield model
    model.metok, model._stage1 = before, stage1


@pytest.mark.parametrize(
    ("mode", "reduce"),
    [("separate", POOL), ("separate", SELECT), ("shared", POOL), ("none", POOL), ("none", SELECT)],
)
@pytest.mark.parametrize("lengths", [(1,), (2, 1), (3, 9, 1, 6, 5, 8), (40, 3, 27)])
def test_visual_tokens_equal_the_reference(
    metok: Any, model: Any, mode: str, reduce: str, lengths: tuple[int, ...]
) -> None:
    model.metok, model._stage1 = replace(model.metok, alignment_mode=mode), None
    options = {"num_events": 4, "key_frames_per_event": 3, "reduce": reduce}
    prompt = chat_prompt(QUESTION, videos=[video(5, lengths)], options=options)
    inputs = render(metok, prompt)
    item = inputs["mm_kwargs"]["video"][0]
    pixels_TCHW = item["pixel_values_videos"].data
    with torch.inference_mode():
        (tokens_ND,) = model.embed_multimodal(
            pixel_values_videos=pixels_TCHW[None], **{FIELD: [item[FIELD].data]}
        )
    config = METokConfig.from_dict({**options, "alignment_mode": mode})
    alignment = None if mode == "none" else ALIGNMENT_DIR
    expected = stage1_from_checkpoint(
        MODEL_DIR, alignment, mode, pixels_TCHW, QUESTION.strip(), config
    )
    report = model.stage1.events.report(inputs["metok"].videos[0].key)
    assert report["class_of_frame"] == expected.class_T
    assert report["event_of_frame"] == expected.event_T
    assert report["relevance_of_frame"] == pytest.approx(expected.relevance_T, abs=1e-5)
    assert tokens_ND.shape == expected.tokens_ND.shape
    scale = max(float(expected.tokens_ND.abs().max()), 1.0)
    assert (tokens_ND - expected.tokens_ND).abs().max() <= 1e-5 * scale
    (place,) = inputs["mm_placeholders"]["video"]
    assert place.length == len(tokens_ND) == inputs["metok"].encoded_tokens


@pytest.mark.parametrize("options", [{}, {"preset": "max"}, {"enabled": False}])
def test_blocks_held_are_the_blocks_reported(metok: Any, options: dict[str, Any]) -> None:
    from vllm import SamplingParams

    prompt = chat_prompt("How many?", videos=[video(2, (6, 8, 9))], options=options)
    scheduler = core_of(metok).scheduler
    pool = scheduler.kv_cache_manager.block_pool
    engine = metok.llm_engine
    metok.reset_prefix_cache()
    free = pool.get_num_free_blocks()
    engine.add_request("blocks", prompt, SamplingParams(max_tokens=3, ignore_eos=True))
    held = []
    tokens = 0
    while engine.has_unfinished_requests():
        engine.step()
        requests = list(scheduler.requests.values())
        if requests:
            tokens = tokens or requests[0].num_prompt_tokens
            ids = scheduler.kv_cache_manager.get_block_ids(requests[0].request_id)
            held.append(sum(len(group) for group in ids))
    assert tokens > 0
    size = engine.vllm_config.cache_config.block_size
    config = model_of(metok).metok
    layout = StageLayout.of(config.pruning_layers, 8)
    plan = render(metok, prompt)["metok"].prompt_plan(tokens)
    assert (plan is None) is (options == {"enabled": False})
    assert held[0] == request_blocks(tokens, size, layout, plan)
    assert held[1] == request_blocks(tokens + 1, size, layout, plan)
    assert pool.get_num_free_blocks() == free


def test_memory_of_the_encoder_is_bounded_by_its_chunks(model: Any, metok: Any) -> None:
    """Each frame passes the vision tower once, in batches of at most the configured size."""
    model.metok, model._stage1 = replace(model.metok, encoder_chunk_frames=7), None
    sizes: list[int] = []
    hook = model.vision_tower.register_forward_hook(
        lambda module, args, output: sizes.append(len(args[0]))
    )
    try:
        item = render(metok, chat_prompt("Why?", videos=[video(3, (12, 20))]))["mm_kwargs"][
            "video"
        ][0]
        with torch.inference_mode():
            model.embed_multimodal(
                pixel_values_videos=item["pixel_values_videos"].data[None],
                **{FIELD: [item[FIELD].data]},
            )
    finally:
        hook.remove()
    assert sizes == [7, 7, 7, 7, 4]
