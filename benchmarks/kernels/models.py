"""Sizes of the METok paper's two models, for which the kernels are compiled and timed.

Read from the published configurations of LLaVA-OneVision-7B (`llava-onevision-qwen2-7b-ov`) and
LongVA-7B (`LongVA-7B`); both decode with Qwen2-7B.
"""

from __future__ import annotations

from dataclasses import dataclass

STRIDES = (2, 4, 8)
EVENTS = 5
KEY_EVENTS = 3
KEY_FRAMES = 6
KEEP_RATIO = 0.76


@dataclass(frozen=True)
class ModelSizes:
    """One video model. `grid` patches a side after the projector, `mode` of its pooling."""

    name: str
    grid: int
    mode: str
    hidden: int = 3584
    heads: int = 28
    kv_heads: int = 4
    head_size: int = 128

    def side(self, stride: int) -> int:
        """Tokens of a pooled frame in one direction."""
        return -(-self.grid // stride) if self.mode == "bilinear" else self.grid // stride

    def classes(self, frames: int) -> tuple[int, int, int]:
        """Frames in each stride class by METok's budget, events equally long."""
        length = frames / EVENTS
        keys = min(KEY_FRAMES, length)
        fine = int(KEY_EVENTS * keys + 0.5)
        others = KEY_EVENTS * (length - keys) + (EVENTS - KEY_EVENTS) * keys
        medium = min(int(others + 0.5), frames - fine)
        return fine, medium, frames - fine - medium

    def tokens(self, frames: int) -> int:
        """Visual tokens after stage 1, with a newline for each event."""
        counts = zip(self.classes(frames), STRIDES, strict=True)
        return sum(count * self.side(stride) ** 2 for count, stride in counts) + EVENTS


LLAVA_ONEVISION_7B = ModelSizes("LLaVA-OneVision-7B", grid=27, mode="bilinear")
LONGVA_7B = ModelSizes("LongVA-7B", grid=24, mode="average")
MODELS = (LLAVA_ONEVISION_7B, LONGVA_7B)
