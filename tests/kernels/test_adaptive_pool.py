"""Adaptive pooling: the packed path against the naive loops of the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.config import METokConfig
from metok_vllm.events import budgeted_classes, segment
from metok_vllm.kernels.adaptive_pool import adaptive_pool, naive, pool_frames
from metok_vllm.plan.cells import cell_centres
from metok_vllm.plan.tokens import frame_budget
from tests.layouts import square
from tests.reference import stage1
from tests.reference.strategies import (
    Rule,
    bounded,
    event_of_frames,
    frame_counts,
    grids,
    modes,
    rules,
    scores,
    strides,
)
from tests.test_events import natural_classes

WIDTH = 3
small_counts = st.sampled_from([1, 2, 5, 7, 32])


def random_patches(frames: int, grid: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames * 100 + grid)
    return torch.randn(frames, grid * grid, WIDTH, generator=generator, dtype=dtype)


@pytest.mark.parametrize("mode", ["bilinear", "average", "area"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("grid", [1, 2, 3, 7, 8, 24, 27])
def test_pooling_equals_one_frame_at_a_time(grid: int, stride: int, mode: str) -> None:
    patches_TPD = random_patches(3, grid)
    pooled = pool_frames(patches_TPD, grid, stride, mode)
    expected = [stage1.pool_frame(frame, grid, stride, mode) for frame in patches_TPD]
    torch.testing.assert_close(pooled, torch.stack(expected), atol=1e-5, rtol=0)


def test_bilinear_is_the_models_own_pooling() -> None:
    # 27 -> 14: sample points (i + 0.5) * 27 / 14 - 0.5, the rule of LLaVA-OneVision.
    ramp = torch.arange(27.0).repeat_interleave(27).reshape(1, 729, 1)
    pooled = pool_frames(ramp, 27, 2, "bilinear").reshape(14, 14)
    expected = (torch.arange(14) + 0.5) * 27 / 14 - 0.5
    torch.testing.assert_close(pooled, expected[:, None].expand(14, 14))


@bounded
@given(st.data(), small_counts, grids, strides, modes)
def test_packed_tokens_equal_the_reference(
    data: st.DataObject, frames: int, grid: int, strides_: tuple[int, int, int], mode: str
) -> None:
    event_of = data.draw(event_of_frames(frames))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    patches = random_patches(frames, grid)
    newline = torch.tensor([7.0, 8.0, 9.0])
    expected = stage1.pack(patches, classes, event_of, newline, grid, strides_, mode)
    for total in (None, len(expected.tokens_ND)):
        tokens, events = adaptive_pool(
            patches,
            torch.tensor(classes),
            torch.tensor(event_of),
            newline,
            grid,
            strides_,
            mode,
            total,
        )
        assert events.tolist() == expected.event_of_token
        torch.testing.assert_close(tokens, expected.tokens_ND, atol=1e-5, rtol=0)


@bounded
@given(st.data(), small_counts, grids, strides)
def test_the_packages_naive_operation_equals_the_reference(
    data: st.DataObject, frames: int, grid: int, strides_: tuple[int, int, int]
) -> None:
    event_of = data.draw(event_of_frames(frames))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    mode = data.draw(modes) if grid >= max(strides_) else "bilinear"
    patches = random_patches(frames, grid, torch.float64)
    newline = torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)
    expected = stage1.pack(patches, classes, event_of, newline, grid, strides_, mode)
    tokens, events = naive.adaptive_pool(
        patches, torch.tensor(classes), torch.tensor(event_of), newline, grid, strides_, mode
    )
    assert events.tolist() == expected.event_of_token
    torch.testing.assert_close(tokens, expected.tokens_ND, atol=1e-12, rtol=0)


@bounded
@given(st.data(), frame_counts, st.integers(1, 9), strides)
def test_frames_stay_in_time_order_and_every_event_is_closed(
    data: st.DataObject, frames: int, grid: int, strides_: tuple[int, int, int]
) -> None:
    event_of = torch.tensor(data.draw(event_of_frames(frames)))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    # Every patch holds its frame's number, and a newline is the only NaN.
    patches = torch.arange(float(frames))[:, None, None].expand(frames, grid * grid, 1).contiguous()
    tokens, events = adaptive_pool(
        patches, torch.tensor(classes), event_of, torch.tensor([torch.nan]), grid, strides_
    )
    is_newline = tokens[:, 0].isnan()
    assert events[is_newline].tolist() == list(range(int(event_of[-1]) + 1))
    assert is_newline[-1]
    frame_N = tokens[~is_newline, 0].round().long()
    assert frame_N.tolist() == sorted(frame_N.tolist())
    assert set(frame_N.tolist()) == set(range(frames))
    assert events[~is_newline].tolist() == event_of[frame_N].tolist()
    # A newline stands where the next token is of another event, and nowhere else.
    assert (events[1:] != events[:-1]).tolist() == is_newline[:-1].tolist()


@bounded
@given(
    st.data(),
    st.sampled_from([1, 2, 5, 7, 32, 129]),
    rules,
    st.integers(1, 9),
    strides.filter(lambda s: s[0] >= 2),
)
def test_the_budget_is_the_packed_length(
    data: st.DataObject, frames: int, rule: Rule, grid: int, strides_: tuple[int, int, int]
) -> None:
    config = METokConfig(
        num_events=rule.num_events,
        key_event_ratio=rule.ratio,
        key_frames_per_event=rule.per_event,
        strides=strides_,
    )
    event_of = segment(torch.tensor(data.draw(scores(frames - 1))), rule.num_events)
    relevance = torch.tensor(data.draw(scores(frames)))
    natural = natural_classes(event_of, relevance, config)
    budget = frame_budget(frames, rule.num_events, rule.ratio, rule.per_event)
    classes = budgeted_classes(natural, relevance, budget)
    tokens, _ = adaptive_pool(
        random_patches(frames, grid), classes, event_of, torch.zeros(WIDTH), grid, strides_
    )
    assert len(tokens) == square(frames, grid).encoded_tokens(config)


def test_a_bad_frame_stays_in_its_own_tokens() -> None:
    patches = random_patches(5, 9)
    patches[2] = torch.nan
    event_of = torch.tensor([0, 0, 0, 1, 1])
    classes = torch.tensor([0, 1, 2, 1, 0])
    tokens, _ = adaptive_pool(patches, classes, event_of, torch.zeros(WIDTH), 9, (2, 4, 8))
    before, own = 25 + 9, 4
    bad = tokens.isnan().all(dim=1)
    assert bad.nonzero().flatten().tolist() == list(range(before, before + own))


def test_area_cells_at_the_edge_are_means_of_what_they_have() -> None:
    ramp = torch.arange(15.0).reshape(1, 15, 1)
    pooled = pool_frames(ramp, (3, 5), 2, "area").flatten().tolist()
    assert pooled == [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]
    # A cell larger than the frame is the frame.
    assert pool_frames(ramp, (3, 5), 8, "area").flatten().tolist() == [7.0]
    # Where no cell is cut off, it is the average.
    even = random_patches(2, 8)
    assert pool_frames(even, 8, 4, "area").equal(pool_frames(even, 8, 4, "average"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_area_adds_up_in_float32(dtype: torch.dtype) -> None:
    # A sum of 256 ones and small numbers would lose the small ones in the features' own type.
    cell = torch.ones(1, 256, 1, dtype=dtype)
    cell[0, ::2] = 1 + 2 * torch.finfo(dtype).eps
    assert pool_frames(cell, 16, 16, "area").item() == 1 + torch.finfo(dtype).eps


@bounded
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_centres_are_in_the_order_of_pooled_features(rows: int, columns: int, factor: int) -> None:
    # Every patch holds the number of its cell, so pooling keeps it.
    across = -(-columns // factor)
    cells = [y // factor * across + x // factor for y in range(rows) for x in range(columns)]
    patches = torch.tensor(cells, dtype=torch.float32).reshape(1, -1, 1)
    pooled = pool_frames(patches, (rows, columns), factor, "area").flatten()
    centres = torch.tensor(cell_centres(rows, columns, factor))
    assert patches.flatten()[centres].tolist() == pooled.round().tolist()


def test_wrong_shapes_and_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="5x5"):
        pool_frames(torch.zeros(1, 24, 2), 5, 2)
    with pytest.raises(ValueError, match="'max'"):
        pool_frames(torch.zeros(1, 25, 2), 5, 2, "max")
