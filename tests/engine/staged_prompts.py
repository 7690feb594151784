"""Prompts for a `StagedEngine`, and the plan that METok's definition gives a video in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from metok_vllm.config import METokConfig
from tests.engine.prompts import scenes, video
from tests.reference.decoder import Video
from tests.reference.pruning import planned_tokens
from tests.reference.stage1 import EVENT, frame_length, key_events
from tests.untrained import MODEL_DIR

OFF = {"enabled": False}


@dataclass(frozen=True)
class Clip:
    """A video of still scenes; `lengths` are their numbers of frames."""

    seed: int
    lengths: tuple[int, ...]


class Picture(Clip):
    """An image, the first frame of such a video."""


@dataclass(frozen=True)
class Frame:
    """How a model pools frames of grid x grid patches, and where its newlines stand."""

    grid: int
    mode: str = "bilinear"
    newlines: str = EVENT


Parts = Sequence[int | Clip]


def make_prompt(parts: Parts, options: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
    """A prompt of token ids; each part is a number of random words, a video or an image.

    Another `seed` changes words and scenes, not their lengths. With `options` None the request has
    no METok settings.
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
    start: int, decision: Any, config: METokConfig, tokens: int, prompt_length: int, frame: Frame
) -> Video:
    """The reference decoder's view of a video whose stage 1 came to `decision`.

    Frames are pooled at their class's stride; `frame` says how, and where newlines stand.
    """
    events, classes = decision["event_of_frame"], decision["class_of_frame"]
    event_of: list[int] = []
    for number, event in enumerate(events):
        stride = config.strides[classes[number]] if 1 in config.stages else 2
        event_of += [event] * frame_length(frame.grid, stride, frame.mode, frame.newlines)
        last = number == len(events) - 1
        closes = last or (1 in config.stages and events[number + 1] != event)
        if closes and frame.newlines == EVENT:
            event_of.append(event)
    assert len(event_of) == tokens
    important = key_events(events, decision["relevance_of_frame"], config.key_event_ratio)
    key = [event in important for event in range(max(events) + 1)]
    assert key == decision["event_key"]
    totals = planned_tokens(
        len(events),
        tokens - (start + tokens == prompt_length),
        config.num_events,
        config.key_event_ratio,
        config.key_frames_per_event,
        config.strides,
        frame.grid,
        config.keep_ratio,
        1 in config.stages,
        frame.mode,
        frame.newlines,
    )
    return Video(start, event_of, key, decision["event_relevance"], totals)
