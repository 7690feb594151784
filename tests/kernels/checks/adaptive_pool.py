"""Adaptive pooling against one frame at a time in float64: grids, widths, modes, separators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from metok_vllm.kernels.adaptive_pool import adaptive_pool, naive
from tests.kernels.checks import (
    DTYPES,
    SIZES,
    Check,
    assert_close,
    assert_same,
    generator,
    poisoned,
    short,
)

# Half a unit in the last place of the result, or a whole one where rounding is cut off (Triton's
# interpreter does that to bfloat16); for float32 the sample points are themselves rounded.
BOUNDS = {torch.float32: 3e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
MODES = ("bilinear", "average", "area")
# LLaVA-OneVision, LongVA, Qwen3-VL at 448 pixels of height.
MODEL_GRIDS: dict[str, int | tuple[int, int]] = {"bilinear": 27, "average": 24, "area": (12, 21)}


def checks() -> Iterator[Check]:
    """All checks of this operation."""
    for dtype in DTYPES:
        for mode in MODES:
            for grid in (1, 3, 7, MODEL_GRIDS[mode]):
                yield _check(f"grid {grid} {mode} {short(dtype)}", 4, grid, 33, mode, dtype)
            for width in SIZES:
                case = f"{width} wide {mode} {short(dtype)}"
                yield _check(case, 2, 3, width, mode, dtype, strides=(1, 2, 3))
    for mode in MODES:
        yield _check(f"one frame {mode}", 1, 5, 16, mode)
        yield _check(f"total not given {mode}", 6, 5, 16, mode, total=False)
        yield _check(f"frames apart {mode}", 6, 5, 16, mode, every_other=True)
        yield _check(f"other strides {mode}", 6, 9, 16, mode, strides=(1, 3, 5))
    for mode in MODES:
        for row_newline in (False, True):
            case = f"row newlines {row_newline} {mode}"
            newlines = {"closes_events": False, "row_newline": row_newline}
            yield _check(case, 6, 9, 33, mode, newlines=newlines)
            yield _check(f"{case}, total not given", 6, 5, 16, mode, total=False, newlines=newlines)
        both = {"closes_events": True, "row_newline": True}
        yield _check(f"all newlines {mode}", 6, 7, 16, mode, newlines=both)
        for rectangle in ((9, 5), (4, 11)):
            yield _check(f"{rectangle} {mode}", 5, rectangle, 16, mode, newlines=both)
            yield _check(f"{rectangle} {mode}, events alone", 5, rectangle, 16, mode)
        for row_newline in (False, True):
            alone = {"closes_events": False, "row_newline": row_newline}
            case = f"separators, row newlines {row_newline} {mode}"
            yield _check(case, 9, (7, 4), 33, mode, newlines=alone, around=(3, 2))
            yield _check(
                f"{case}, total not given",
                9,
                (4, 7),
                16,
                mode,
                torch.bfloat16,
                total=False,
                newlines=alone,
                around=(3, 2),
            )
    apart = {"closes_events": False}
    yield _check("heads alone", 5, 3, 16, "area", newlines=apart, around=(3, None))
    yield _check("tails alone", 5, 3, 16, "area", newlines=apart, around=(None, 3))
    yield _check("no separator in any frame", 5, 3, 16, "area", newlines=apart, around=(0, 0))
    yield _check("more separators than a tile", 4, 2, 300, "area", newlines=apart, around=(40, 40))
    yield _check(
        "separators and no features",
        4,
        2,
        16,
        "average",
        strides=(3, 4, 5),
        newlines=apart,
        around=(3, 3),
    )
    yield _check("separators of 150 frames", 150, 1, 3, "area", newlines=apart, around=(2, 1))
    yield _check("more frames than are added up at a time", 150, 1, 3, "bilinear")
    yield _check("no frames", 0, 3, 8, "bilinear")


def _check(
    case: str,
    frames: int,
    grid: int | tuple[int, int],
    width: int,
    mode: str,
    dtype: torch.dtype = torch.float32,
    every_other: bool = False,
    strides: tuple[int, int, int] = (2, 4, 8),
    total: bool = True,
    newlines: dict[str, Any] | None = None,
    around: tuple[int | None, int | None] | None = None,
) -> Check:
    def run(device: str) -> None:
        random = generator(case)
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        where = dict(newlines or {})
        apart = 2 if every_other else 1
        x = torch.randn(frames * apart, rows * columns, width, generator=random).to(dtype)
        class_T = torch.randint(0, 3, (frames,), generator=random)
        begins_T = torch.rand(frames, generator=random) < 0.3
        begins_T[:1] = False
        event_T = begins_T.long().cumsum(0)
        newline_D = torch.randn(width, generator=random).to(dtype)
        x_TPD = x.to(device)[::apart]
        given = (class_T.to(device), event_T.to(device), newline_D.to(device), grid, strides, mode)
        if frames == 0:
            tokens_ND, event_N = adaptive_pool(x_TPD, *given)
            assert tokens_ND.shape == (0, width)
            assert event_N.shape == (0,)
            return
        exact = dict(where)
        if around is not None:
            # At most this many rows before and after a frame; None for no such argument.
            counts = {
                name: None
                if most is None
                else torch.randint(0, most + 1, (frames,), generator=random)
                for name, most in zip(("head_T", "tail_T"), around, strict=True)
            }
            rows = sum(int(count_T.sum()) for count_T in counts.values() if count_T is not None)
            separator_SD = torch.randn(rows, width, generator=random).to(dtype)
            exact |= {**counts, "separator_SD": separator_SD.double()}
            where |= {name: None if c is None else c.to(device) for name, c in counts.items()}
            where["separator_SD"] = separator_SD.to(device)
        expected_ND, expected_N = naive.adaptive_pool(
            x[::apart].double(), class_T, event_T, newline_D.double(), grid, strides, mode, **exact
        )
        known = len(expected_N) if total else None
        with poisoned():
            tokens_ND, event_N = adaptive_pool(x_TPD, *given, known, **where)
        assert tokens_ND.dtype == dtype
        assert_same(event_N, expected_N)
        assert_close(tokens_ND, expected_ND, BOUNDS[dtype])

    return Check("adaptive_pool", case, run)
