"""Prompts for an engine that runs METok's stages, and what the rules say of a video in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from metok_vllm.config import METokConfig
from tests.engine.conftest import scenes, video
from tests.reference.decoder import Video
from tests.reference.pruning import planned_tokens
from tests.reference.stage1 import key_events, pooled_side
from tests.untrained import MODEL_DIR

OFF = {"enabled": False}


@dataclass(frozen=True)
class Clip:
    """A video of still scenes with so many frames each."""

    seed: int
    lengths: tuple[int, ...]


class Picture(Clip):
    """An image, the first frame of such a video."""


Parts = Sequence[int | Clip]


def laid_out(parts: Parts, options: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
    """A prompt of tokens: in turn so many random words, or a video, or an image.

    Another `seed` gives other words and other scenes of the same lengths. Without `options` the
    request says nothing of METok.
    """
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    data: dict[str, list[Any]] = {}
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(300, 900, part).tolist()
        elif isinstance(part, Picture):
            ids.append(config["image_token_index"])
            still = scenes(part.seed + 1000 * seed, part.lengths)[0]
            data.setdefault("image", []).append(Image.fromarray(still))
        else:
            ids.append(config["video_token_index"])
            data.setdefault("video", []).append(video(part.seed + 1000 * seed, part.lengths))
    prompt: dict[str, Any] = {"prompt_token_ids": ids}
    if data:
        prompt["multi_modal_data"] = data
    if data and options is not None:
        prompt["mm_processor_kwargs"] = {"metok": dict(options)}
    return prompt


def planned_video(
    start: int, told: Any, config: METokConfig, tokens: int, prompt_length: int, grid: int
) -> Video:
    """A video as the rules see it: frames at their class's stride, a newline after each event."""
    events, classes = told["event_of_frame"], told["class_of_frame"]
    event_of: list[int] = []
    for frame, event in enumerate(events):
        stride = config.strides[classes[frame]] if 1 in config.stages else 2
        event_of += [event] * pooled_side(grid, stride, "bilinear") ** 2
        last = frame == len(events) - 1
        if last or (1 in config.stages and events[frame + 1] != event):
            event_of.append(event)
    assert len(event_of) == tokens
    important = key_events(events, told["relevance_of_frame"], config.key_event_ratio)
    key = [event in important for event in range(max(events) + 1)]
    assert key == told["event_key"]
    totals = planned_tokens(
        len(events),
        tokens - (start + tokens == prompt_length),
        config.num_events,
        config.key_event_ratio,
        config.key_frames_per_event,
        config.strides,
        grid,
        config.keep_ratio,
        1 in config.stages,
    )
    return Video(start, event_of, key, told["event_relevance"], totals)
