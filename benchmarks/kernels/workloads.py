"""The timed calls: every operation as the engine calls it, with its floor in bytes and FLOPs.

Shape suffixes as in the operations' own packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.benchmarks.kernels.models import EVENTS, KEEP_RATIO, STRIDES, ModelSizes
from metok_vllm.kernels.adaptive_pool import (
    adaptive_pool,
    pack_index,
    pool_frames,
    pooled_sides,
)
from metok_vllm.kernels.attention_mass import attention_mass
from metok_vllm.kernels.event_topk import event_topk
from metok_vllm.kernels.gather_rows import gather_rows

QUESTION = 60  # text tokens that score
TEXT = 120  # text tokens in all
ROTARY = 8  # bytes of a position


@dataclass(frozen=True)
class Work:
    """One timed call. `flops` counts matrix products; `triton`: it has a Triton version."""

    operation: str
    call: Callable[[], object]
    bytes: int
    flops: int = 0
    triton: bool = True

    def floor_seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The lower bound of the time: the slower of memory and matrix units."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def works(
    model: ModelSizes, frames: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> Iterator[Work]:
    """All operations for one video; each frees its memory before the next is built."""
    yield _scoring(model, frames, device, dtype)
    yield _selection(model, frames, device)
    yield _gathering(model, frames, device, dtype)
    yield from _frames(model, frames, device, dtype)


def _scoring(model: ModelSizes, frames: int, device: str, dtype: torch.dtype) -> Work:
    keys = model.tokens(frames) + TEXT
    q_QHD = torch.randn(QUESTION, model.heads, model.head_size, device=device, dtype=dtype)
    k_NGD = torch.randn(keys, model.kv_heads, model.head_size, device=device, dtype=dtype)
    size = (k_NGD.numel() + q_QHD.numel()) * dtype.itemsize + 4 * keys
    flops = 4 * QUESTION * model.heads * keys * model.head_size
    scale = model.head_size**-0.5

    def score() -> Tensor:
        return attention_mass(q_QHD, k_NGD, [QUESTION], [keys], scale)

    return Work("attention_mass", score, size, flops)


def _selection(model: ModelSizes, frames: int, device: str) -> Work:
    tokens = model.tokens(frames)
    score_N = torch.rand(tokens, device=device)
    event_N = torch.arange(tokens, device=device) * EVENTS // tokens
    counts = [int(KEEP_RATIO * int((event_N == event).sum())) for event in range(EVENTS)]
    count_E, total = torch.tensor(counts, device=device), sum(counts)
    moved = tokens * score_N.element_size() + total * event_N.element_size()
    return Work("event_topk", lambda: event_topk(score_N, event_N, count_E, total), moved)


def _gathering(model: ModelSizes, frames: int, device: str, dtype: torch.dtype) -> Work:
    tokens = model.tokens(frames) + TEXT
    kept = int(KEEP_RATIO * tokens)
    hidden = torch.randn(tokens, model.hidden, device=device, dtype=dtype)
    residual, positions = hidden.clone(), torch.arange(tokens, device=device)
    index_M = torch.randperm(tokens, device=device)[:kept].sort().values
    row = 2 * model.hidden * dtype.itemsize + ROTARY
    moved = kept * (2 * row + index_M.element_size())
    return Work("gather_rows", lambda: gather_rows(index_M, hidden, residual, positions), moved)


def _frames(model: ModelSizes, frames: int, device: str, dtype: torch.dtype) -> Iterator[Work]:
    x_TPD = torch.randn(frames, model.grid**2, model.hidden, device=device, dtype=dtype)
    newline_D = torch.zeros(model.hidden, device=device, dtype=dtype)
    counts = model.classes(frames)
    frame_T = torch.arange(frames, device=device)
    class_T = (frame_T >= counts[0]).long() + (frame_T >= counts[0] + counts[1]).long()
    event_T = frame_T * min(EVENTS, frames) // frames
    sides = [pooled_sides(model.grid, stride, model.mode) for stride in STRIDES]
    total = sum(
        count * rows * columns for count, (rows, columns) in zip(counts, sides, strict=True)
    )
    total += min(EVENTS, frames)
    read, written = x_TPD.numel() * dtype.itemsize, total * model.hidden * dtype.itemsize

    def fused() -> object:
        return adaptive_pool(
            x_TPD, class_T, event_T, newline_D, model.grid, STRIDES, model.mode, total
        )

    def in_chunks() -> object:
        # As the encoder does it: every frame at every stride, then one gather.
        pooled = [pool_frames(x_TPD, model.grid, stride, model.mode) for stride in STRIDES]
        rows = torch.cat([*(p.flatten(0, 1) for p in pooled), newline_D[None]])
        return rows.index_select(0, pack_index(class_T, event_T, sides, total)[0])

    def statistics() -> object:
        means_TD = x_TPD.mean(1, dtype=torch.float32)
        neighbours = F.cosine_similarity(means_TD[:-1], means_TD[1:], dim=-1)
        return neighbours, F.cosine_similarity(means_TD, means_TD[:1], dim=-1)

    yield Work("adaptive_pool", fused, read + written)
    yield Work("pooling as the encoder does it", in_chunks, read + written, triton=False)
    yield Work("frame statistics", statistics, read, triton=False)
