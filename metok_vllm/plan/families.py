"""The video layout of each model family, from a Hugging Face configuration.

Read wherever tokens are counted without the model: reports, `metok doctor`, `metok inspect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metok_vllm.config.families import QWEN_VL, TIMESTAMPED
from metok_vllm.config.methods import POOL, REDUCTIONS, SELECT
from metok_vllm.plan.layout import AREA, BILINEAR, VideoLayout

# What is assumed of a video that is not there yet: 16:9, and Qwen's sampling rate.
SIZE, FPS = (448, 798), 2.0


def video_layout(
    config: Any,
    frames: int = 1,
    size: tuple[int, int] | None = None,
    times_s: Sequence[float] | None = None,
) -> VideoLayout:
    """The layout of a video of `frames` sampled frames, for counting.

    `size` is the height and width in pixels of a frame for models that keep its shape (Qwen's), by
    default SIZE; others resize every frame to one square. `times_s` are those of the frames where
    the prompt has them, by default FPS apart. The engine takes Qwen's grids from the processor,
    which may also shrink frames to its pixel limits; these are not applied here.
    """
    if getattr(config, "model_type", None) in QWEN_VL:
        times = times_s or [frame / FPS for frame in range(frames)]
        return _qwen_layout(config, times, size or SIZE)
    vision = config.vision_config
    side = int(vision.image_size // vision.patch_size)
    # LLaVA-OneVision pools bilinearly and closes the video with one newline. The original
    # LLaVA-NeXT layout names both (`metok_vllm.models.llava_qwen_config`).
    newline = getattr(config, "mm_newline_position", "one_token")
    return VideoLayout(
        frames,
        side,
        side,
        pooling=getattr(config, "mm_spatial_pool_mode", BILINEAR),
        closes_events=newline == "one_token",
        row_newline=newline == "grid",
        reductions=(POOL,) if newline == "grid" else (POOL, SELECT),
    )


def deepstack_levels(config: Any) -> int:
    """The decoder's first layers that vision features of several depths join (Qwen3-VL); METok's
    stages begin after them."""
    vision = getattr(config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def _qwen_layout(config: Any, times_s: Sequence[float], size: tuple[int, int]) -> VideoLayout:
    """Temporal patches of merged patches; between timestamps from Qwen3-VL on.

    A side is the nearest multiple of patch * merge (transformers, `smart_resize`).
    """
    vision = config.vision_config
    merge = int(vision.spatial_merge_size)
    side = int(vision.patch_size) * merge
    rows, columns = (max(round(pixels / side), 1) for pixels in size)
    per_patch = int(vision.temporal_patch_size)
    times = patch_times(times_s, per_patch)
    before: tuple[tuple[int, ...], ...] = ()
    after: tuple[tuple[int, ...], ...] = ()
    if config.model_type in TIMESTAMPED:
        before = tuple((0,) * _stamp_tokens(seconds) for seconds in times)
        after = ((0,),) * len(times)
    return patch_layout(vision, len(times), rows, columns, before, after)


def patch_layout(
    vision: Any,
    patches: int,
    rows: int,
    columns: int,
    before: tuple[tuple[int, ...], ...] = (),
    after: tuple[tuple[int, ...], ...] = (),
) -> VideoLayout:
    """A video of Qwen's models: temporal patches of `rows` x `columns` merged patches.

    `vision` is the tower's Hugging Face configuration; `before` and `after` are text ids around
    each temporal patch.
    """
    return VideoLayout(
        patches,
        rows,
        columns,
        unit=int(vision.spatial_merge_size),
        pooling=AREA,
        before=before,
        after=after,
        sampled_frames=int(vision.temporal_patch_size),
        reductions=REDUCTIONS,
    )


def patch_times(times_s: Sequence[float], per_patch: int) -> list[float]:
    """The time of each temporal patch: the mean of its first and its last frame's. A patch that
    lacks frames repeats the last one."""
    last = len(times_s) - 1
    return [
        (times_s[first] + times_s[min(first + per_patch - 1, last)]) / 2
        for first in range(0, len(times_s), per_patch)
    ]


def _stamp_tokens(seconds: float) -> int:
    """Tokens in front of a temporal patch: `<`, `1`, `2`, `.`, `2`, ` seconds`, `>` and
    `<|vision_start|>`. Qwen's tokenizer splits numbers into digits; ids do not matter here."""
    return len(f"{seconds:.1f}") + len(("<", " seconds", ">", "<|vision_start|>"))
