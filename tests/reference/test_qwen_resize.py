"""`reduce: resize`, by class and in chunks, equals Hugging Face's tower on one frame after another.

Shape suffixes: T frames, N patches of a frame, V values of a patch, S separators, D features.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm.alignment import Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.models.positions import VideoPositions, from_channels
from metok_vllm.models.qwen_pixels import PatchOrder
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from tests.engine.prompts import scenes
from tests.reference import qwen_resize
from tests.reference.mrope import cell_centres, kept_tokens
from tests.reference.qwen_vl_checkpoint import load_model, write_checkpoint
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL

# Cells that the frame's edge cuts off; windows of Qwen2.5-VL's tower, whole and in part.
ROWS, COLUMNS, LENGTHS = 5, 7, (4, 8, 6, 8)
CONFIG = METokConfig(num_events=4, key_event_ratio=0.5, key_frames_per_event=1, reduce="resize")


@pytest.fixture(scope="module", params=[QWEN2_5_VL, QWEN3_VL])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    write_checkpoint(folder, request.param)
    (file, *_) = folder.glob("*preprocessor_config.json")
    statistics = json.loads(file.read_text(encoding="utf-8"))
    loaded = load_model(folder)
    loaded.statistics = statistics["image_mean"], statistics["image_std"]
    return loaded


@pytest.mark.parametrize("chunk", [32, 4])
@torch.inference_mode()
def test_tokens_equal_the_tower_s_on_each_resized_frame(model: Any, chunk: int) -> None:
    visual, vision = model.model.visual, model.config.vision_config
    mean, std = model.statistics
    side = vision.patch_size * vision.spatial_merge_size
    video = video_layout(model.config, sum(LENGTHS), (ROWS * side, COLUMNS * side))
    assert (video.frames, video.grid) == (sum(LENGTHS) // 2, (ROWS, COLUMNS))
    order, normalisation = PatchOrder.of(vision), Normalisation.of(mean, std, side)
    reference = qwen_resize.Pixels(vision.patch_size, mean, std)

    def see(pixels_TNV: Tensor, layout: VideoLayout) -> Tensor:
        grid = [len(pixels_TNV), layout.rows * layout.unit, layout.columns * layout.unit]
        seen = visual(pixels_TNV.flatten(0, 1), grid_thw=torch.tensor([grid]))
        levels = getattr(seen, "deepstack_features", None) or []
        features_ND = torch.cat([seen.pooler_output, *levels], dim=-1)
        features_TPD: Tensor = features_ND.unflatten(0, (len(pixels_TNV), -1))
        return features_TPD

    pictures = torch.from_numpy(scenes(3, LENGTHS, (ROWS * side, COLUMNS * side)))
    colours = pictures.permute(0, 3, 1, 2).unflatten(0, (video.frames, 2)) / 255
    pixels_TNV = order.patches(reference.normalised(colours))
    width = see(pixels_TNV[:1], video).shape[-1]
    generator = torch.Generator().manual_seed(4)
    text_SD = torch.randn(video.separators, width, generator=generator)
    around = [len(ids) for pair in zip(video.before, video.after, strict=True) for ids in pair]
    parts = text_SD.split(around) if around else ()

    expected = qwen_resize.encode(
        partial(qwen_resize.tower, visual),
        list(pixels_TNV),
        video.grid,
        reference,
        CONFIG,
        parts[::2],
        parts[1::2],
    )
    assert set(expected.classes) == {0, 1, 2}

    stage1 = Stage1Encoder(
        replace(CONFIG, encoder_chunk_frames=chunk),
        see,
        lambda x: x,
        normalisation,
        None,
        picture=lambda pixels, layout: order.pictures(pixels, layout.grid)[:, 0],
        resize=lambda pixels, layout, target: order.resized(
            pixels, layout.grid, target.grid, normalisation
        ),
    )
    positions, place_N3 = any_positions(video)
    tokens_ND = stage1.encode(
        pixels_TNV,
        None,
        EncodeRequest("key", CONFIG, ()),
        video,
        text_SD if around else None,
        positions,
    )
    torch.testing.assert_close(
        tokens_ND[:, :width], expected.packed.tokens_ND, atol=2e-5, rtol=2e-5
    )
    report, events = stage1.events.report("key"), stage1.token_events("key")
    assert report is not None
    assert events is not None
    assert report["event_of_frame"] == expected.event_of
    assert report["class_of_frame"] == expected.classes
    assert events.event_N.tolist() == expected.packed.event_of_token
    centres = [cell_centres(video.grid, CONFIG.strides[c] // 2) for c in expected.classes]
    kept = kept_tokens(centres, ROWS * COLUMNS, around[::2], around[1::2])
    assert torch.equal(from_channels(tokens_ND[:, width:]), place_N3[kept])


def any_positions(video: VideoLayout) -> tuple[VideoPositions, Tensor]:
    """Positions that tell all tokens apart, and the same for the dense video in its order."""
    size = video.rows * video.columns
    number_N3 = torch.arange(video.dense_tokens())[:, None] * torch.tensor([1, 2, 3])
    frames, text, start = [], [], 0
    for frame in range(video.frames):
        head = len(video.before[frame]) if video.before else 0
        tail = len(video.after[frame]) if video.after else 0
        parts = number_N3[start:].split(
            [head, size, tail, len(number_N3) - start - head - size - tail]
        )
        text += [parts[0], parts[2]]
        frames.append(parts[1])
        start += head + size + tail
    return VideoPositions(torch.stack(frames), torch.cat(text)), number_N3
