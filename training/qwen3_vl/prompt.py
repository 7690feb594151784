"""A video's part of the prompt: token ids with timestamps, and positions on three axes.

Every pair of frames is `<1.2 seconds><|vision_start|>`, its tokens, `<|vision_end|>`. The chat
template's own `<|vision_start|>` and `<|vision_end|>` stay around the whole video.

Shape suffixes: N tokens of the video and what is before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.qwen3_vl.sizes import MERGE
from training.qwen3_vl.tower import Grid

BEFORE = "<|im_start|>user\n<|vision_start|>"
ASKED = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class VideoPrompt:
    """Ids [N], their positions [3, N], the visual tokens' places [V] and the next position."""

    ids_N: Tensor
    position_3N: Tensor
    visual_V: Tensor
    end: int


def timestamps(pairs: int, fps: float) -> list[float]:
    """Seconds of each pair at `fps` sampled frames a second: the mean of its two frames."""
    return [(2 * pair + 0.5) / fps for pair in range(pairs)]


def video_prompt(tokenizer: Any, times: list[float], grid: Grid) -> VideoPrompt:
    """The prompt up to the last pair of a video with these times. `grid` is in patches.

    A pair's tokens share one temporal position; the text after them goes on after their largest
    position. Source: `get_rope_index`, transformers' models/qwen3_vl/modeling_qwen3_vl.py.
    """
    rows, columns = grid[0] // MERGE, grid[1] // MERGE
    visual = tokenizer.token_to_id("<|video_pad|>")
    ids: list[int] = []
    positions: list[tuple[int, int, int]] = []
    place = 0

    def text(written: str) -> None:
        nonlocal place
        for number in tokenizer.encode(written).ids:
            ids.append(number)
            positions.append((place, place, place))
            place += 1

    text(BEFORE)
    for time in times:
        text(f"<{time:.1f} seconds>")
        text("<|vision_start|>")
        ids += [visual] * (rows * columns)
        positions += [(place, place + r, place + c) for r in range(rows) for c in range(columns)]
        place += max(rows, columns)
        text("<|vision_end|>")
    ids_N = torch.tensor(ids)
    visual_V = (ids_N == visual).nonzero().flatten()
    return VideoPrompt(ids_N, torch.tensor(positions).T.contiguous(), visual_V, place)
