"""`reduce: resize` in the engine: rows are Hugging Face's on resized frames, answers follow.

Shape suffixes: T frames, N patches of a frame, V values of a patch, M tokens of a video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine import engines as running
from tests.engine.checkpoints import Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.mrope_expected import POSITION_CHANNELS, frame_of_video, medium_of
from tests.engine.rendered import render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import config_of, without_ties
from tests.engine.staged_prompts import OFF, QWEN, Clip, make_prompt
from tests.reference import qwen_resize
from tests.reference.qwen_vl_checkpoint import load_model
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL

pytestmark = pytest.mark.slow

BOUNDARIES, NEW_TOKENS = (3, 5, 6), 12
CLIP = Clip(5, (3, 6, 2, 5, 4))
RESIZE = {"reduce": "resize", "num_events": 5, "key_frames_per_event": 1}


@pytest.fixture(
    scope="module", params=[QWEN3_VL, pytest.param(QWEN2_5_VL, marks=pytest.mark.thorough)]
)
def checkpoint(
    request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]
) -> Checkpoint:
    return checkpoint_of(request.param)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, engines: EnginePool) -> StagedEngine:
    return StagedEngine(engines, checkpoint.folder, checkpoint.language, BOUNDARIES)


def test_answers_equal_the_reference(engine: StagedEngine) -> None:
    """Alone with stage 1, in all stages, and beside a video that is pooled."""
    cases = [
        without_ties(engine, (7, CLIP, 20), {**RESIZE, "stages": stages}, NEW_TOKENS)
        for stages in ([1], [1, 2, 3], [2, 3])
    ]
    cases.append(without_ties(engine, (7, CLIP, 20), {}, NEW_TOKENS))
    answers = engine.answer([prompt for prompt, _ in cases], NEW_TOKENS)
    for (_, expected), answer in zip(cases, answers, strict=True):
        assert answer is not None
        assert answer.error(expected) <= 1e-4


@torch.inference_mode()
def test_rows_are_hugging_face_s_on_each_resized_frame(
    engine: StagedEngine, checkpoint: Checkpoint
) -> None:
    prompt = make_prompt((7, CLIP, 20), RESIZE, media=QWEN)
    rendered = render(engine, prompt)
    dense = render(engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})
    (placed,), (decision,) = dense.media, rendered.decisions
    medium = medium_of(checkpoint.name, placed)
    frame = frame_of_video(dense.ids, placed, medium)
    around = list(zip(frame.before, frame.after, strict=True))

    model = load_model(checkpoint.folder)
    visual, vision = model.model.visual, model.config.vision_config
    (item,) = running.render(engine.llm, prompt)["mm_kwargs"]["video"]
    pixels_NV: Tensor = item["pixel_values_videos"].data
    statistics = engine.model.video_normalisation()
    given = qwen_resize.Pixels(vision.patch_size, statistics.mean, statistics.std)
    normal = qwen_resize.Pixels(vision.patch_size, *_published(engine))
    assert pixels_NV.dtype == torch.uint8

    def see(patches_NV: Tensor, target: tuple[int, int]) -> Tensor:
        """The tower normalises what the engine gives it: whole bytes."""
        colours = (255 * given.colours(given.picture(patches_NV, target))).round() / 255
        patches_NV = normal.patches(normal.normalised(colours), target)
        return qwen_resize.tower(visual, patches_NV, target)

    (rows_MW,) = rendered.visual.values()
    text = rows_MW.new_zeros(max(map(max, around)), rows_MW.shape[1] - POSITION_CHANNELS)
    expected = qwen_resize.encode(
        see,
        list(pixels_NV.float().unflatten(0, (medium.frames, -1))),
        (medium.rows, medium.columns),
        given,
        config_of(engine, prompt),
        [text[:before] for before, _ in around],
        [text[:after] for _, after in around],
    )
    assert decision["class_of_frame"] == expected.classes
    assert decision["event_of_frame"] == expected.event_of
    assert set(expected.classes) == {0, 1, 2}
    wanted_MW = expected.packed.tokens_ND
    of_video = [m for m in range(len(wanted_MW)) if m not in expected.packed.separators]
    error_M = (rows_MW[of_video, :-POSITION_CHANNELS] - wanted_MW[of_video]).abs().amax(1)
    # A byte half-way between two may be rounded either way.
    assert error_M.max() < 0.02
    assert error_M.median() < 1e-5


def _published(engine: StagedEngine) -> Any:
    from vllm.transformers_utils.processor import cached_get_video_processor

    processor = cached_get_video_processor(engine.model.model_config.model)
    return processor.image_mean, processor.image_std
