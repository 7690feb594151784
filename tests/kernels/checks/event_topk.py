"""Event top-k against a Python sort: sizes, ties, empty and full events, many events."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metok_vllm.kernels.event_topk import event_topk, naive
from tests.kernels.checks import DTYPES, SIZES, Check, assert_same, generator, poisoned, short


def checks() -> Iterator[Check]:
    """All checks of this operation."""
    for dtype in DTYPES:
        for size in SIZES:
            # The narrower types tie often enough by themselves.
            for kind in ("random", "tied") if dtype == torch.float32 else ("random",):
                yield _check(f"{size} tokens {kind} {short(dtype)}", size, 3, kind, dtype)
    yield _check("longer than a tile", 5000, 2, "random")
    yield _check("longer than a tile, tied", 5000, 2, "tied")
    yield _check("all equal", 1000, 5, "equal")
    yield _check("zeros of both signs", 500, 5, "zeros")
    yield _check("extremes", 500, 5, "extremes")
    yield _check("one event", 100, 1, "random")
    yield _check("an event a token", 30, 30, "random")
    yield _check("many events, most empty", 20, 60, "tied")
    yield _check("keep nothing", 100, 7, "random", keep="none")
    yield _check("keep everything", 100, 7, "random", keep="all")
    yield _check("no tokens", 0, 7, "random")
    yield _check("no tokens and no events", 0, 0, "random")


def _check(
    case: str,
    size: int,
    events: int,
    kind: str,
    dtype: torch.dtype = torch.float32,
    keep: str = "some",
) -> Check:
    def run(device: str) -> None:
        random = generator(case)
        score_N = _scores(size, kind, random).to(dtype)
        event_N = torch.randint(0, max(events, 1), (size,), generator=random).sort().values
        size_E = torch.zeros(events, dtype=torch.int64)
        size_E.index_add_(0, event_N, torch.ones_like(event_N))
        count_E = (torch.rand(events, generator=random) * (size_E + 1)).long().minimum(size_E)
        count_E = {"none": count_E * 0, "all": size_E, "some": count_E}[keep]
        total = int(count_E.sum())
        expected = naive.event_topk(score_N, event_N, count_E, total)
        with poisoned():
            kept = event_topk(score_N.to(device), event_N.to(device), count_E.to(device), total)
        assert_same(kept, expected)

    return Check("event_topk", case, run)


def _scores(size: int, kind: str, random: torch.Generator) -> Tensor:
    normal = torch.randn(size, generator=random)
    if kind == "tied":
        return normal.round()
    if kind == "equal":
        return torch.full((size,), 0.25)
    if kind == "zeros":
        return torch.where(normal > 0, 0.0, -0.0)
    if kind == "extremes":
        # Denormal to nearly infinite, both signs.
        return (
            torch.copysign(torch.rand(size, generator=random) * 76 - 38, torch.ones(size))
            .mul(2.302585)
            .exp()
            * normal.sign()
        )
    return normal
