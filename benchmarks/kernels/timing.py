"""Times on a CUDA device, and the device's measured peak rates."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

WARMUP, REPEATS = 3, 20
FLUSH_BYTES = 512 << 20  # more than any L2 cache holds


def median_seconds(call: Callable[[], object]) -> float:
    """Median over `REPEATS` calls, each with a cold L2 cache, launches included."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(WARMUP):
        call()
    times: list[float] = []
    for _ in range(REPEATS):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def bytes_per_second() -> float:
    """Memory traffic of a copy, read and write counted."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source))
    return 2 * source.numel() / seconds


def flops_per_second() -> float:
    """Rate of a bfloat16 matrix product of 8192 x 8192 x 8192."""
    side = 8192
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    return 2 * side**3 / median_seconds(lambda: a @ a)
