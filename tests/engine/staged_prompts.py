"""Prompts for a `StagedEngine`, and the plan that METok's definition gives a video in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from metok_vllm.config import METokConfig
from tests.engine.prompts import sampled_video, scenes, video
from tests.reference.decoder import Video
from tests.reference.pruning import planned_tokens
from tests.reference.qwen_vl_config import ID_OF, QWEN_VL
from tests.reference.stage1 import EVENT, Grid, frame_length, key_events
from tests.untrained import MODEL_DIR

OFF = {"enabled": False}


@dataclass(frozen=True)
class Clip:
    """A video of still scenes; `lengths` are their numbers of frames, as stage 1 counts them.

    The other fields are for families that keep sizes and times: height and width in pixels (None:
    the family's), sampled frames a second, and whether the last temporal patch lacks a frame.
    """

    seed: int
    lengths: tuple[int, ...]
    size: tuple[int, int] | None = None
    fps: float = 1.0
    odd: bool = False


class Picture(Clip):
    """An image, the first frame of such a video."""


@dataclass(frozen=True)
class Media:
    """How prompts of a family hold media: the ids of a placeholder, and the size of a clip.

    Stage 1's frames are `temporal` sampled ones.
    """

    image: tuple[int, ...]
    video: tuple[int, ...]
    size: tuple[int, int]
    temporal: int = 1

    def still(self, clip: Clip, seed: int) -> Image.Image:
        """The first frame of a clip."""
        frames = scenes(clip.seed + seed, clip.lengths[:1], clip.size or self.size)
        return Image.fromarray(frames[0])

    def film(self, clip: Clip, seed: int) -> Any:
        """The frames and metadata of a clip."""
        if self.temporal == 1:
            return video(clip.seed + seed, clip.lengths)
        *lengths, last = (self.temporal * length for length in clip.lengths)
        sampled = (*lengths, last - clip.odd)
        return sampled_video(clip.seed + seed, sampled, clip.size or self.size, clip.fps)


def _llava() -> Media:
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    return Media((config["image_token_index"],), (config["video_token_index"],), (48, 64))


def _between(token: str) -> tuple[int, ...]:
    return tuple(ID_OF[name] for name in ("<|vision_start|>", token, "<|vision_end|>"))


LLAVA = _llava()
# 3 x 5 tokens a temporal patch for Qwen3-VL, 3 x 6 for Qwen2.5-VL.
QWEN = Media(_between("<|image_pad|>"), _between("<|video_pad|>"), (96, 160), 2)


def media_of(config: Any) -> Media:
    """Of the family of a Hugging Face configuration."""
    return QWEN if config.model_type in QWEN_VL else LLAVA


@dataclass(frozen=True)
class Frame:
    """How a model pools frames of `grid` features, and where newlines and other text stand.

    `unit` is the stride in patches that features have. `before` and `after` count the text tokens
    around each frame.
    """

    grid: Grid
    mode: str = "bilinear"
    newlines: str = EVENT
    unit: int = 1
    before: Sequence[int] = ()
    after: Sequence[int] = ()

    def strides(self, config: METokConfig) -> tuple[int, ...]:
        """The strides of a configuration, in features."""
        return tuple(stride // self.unit for stride in config.strides)


Parts = Sequence[int | Clip | tuple[int, ...]]


def make_prompt(
    parts: Parts,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    media: Media = LLAVA,
) -> Any:
    """A prompt of token ids; each part is a number of random words, ids, a video or an image.

    Another `seed` changes words and scenes, not their lengths. With `options` None the request has
    no METok settings.
    """
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    data: dict[str, list[Any]] = {}
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(300, 900, part).tolist()
        elif isinstance(part, tuple):
            ids += part
        elif isinstance(part, Picture):
            ids += media.image
            data.setdefault("image", []).append(media.still(part, 1000 * seed))
        else:
            ids += media.video
            data.setdefault("video", []).append(media.film(part, 1000 * seed))
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
    strides = frame.strides(config)
    event_of: list[int] = []
    separators: list[int] = []
    for number, event in enumerate(events):
        stride = strides[classes[number]] if 1 in config.stages else 2 // frame.unit
        head, tail = (texts[number] if texts else 0 for texts in (frame.before, frame.after))
        features = frame_length(frame.grid, stride, frame.mode, frame.newlines)
        first = len(event_of)
        separators += [*range(first, first + head)]
        separators += [*range(first + head + features, first + head + features + tail)]
        event_of += [event] * (head + features + tail)
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
        strides,
        frame.grid,
        config.keep_ratio,
        1 in config.stages,
        frame.mode,
        frame.newlines,
        len(separators),
    )
    return Video(start, event_of, key, decision["event_relevance"], totals, separators)
