"""Rows of packed tokens, and separators around frames, against sequences made by hand."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.kernels.adaptive_pool import (
    adaptive_pool,
    pack_index,
    pooled_sides,
    separator_mask,
)
from tests.reference.strategies import bounded, event_of_frames, modes, strides


def test_rows_address_the_three_poolings_and_the_newline() -> None:
    rows, events = pack_index(
        torch.tensor([1, 0, 2]),
        torch.tensor([0, 1, 1]),
        [(2, 2), (1, 2), (1, 1)],
        total=4 + 2 + 1 + 2,
    )
    # Fine rows 0-11, medium 12-17, coarse 18-20, newline 21.
    assert rows.tolist() == [12, 13, 21, 4, 5, 6, 7, 20, 21]
    assert events.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_rows_address_separators_behind_everything_else() -> None:
    sides = [(2, 2), (1, 2), (1, 1)]
    frames = (torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), sides)
    around: dict[str, Any] = {"head_T": torch.tensor([1, 0, 2]), "tail_T": torch.tensor([0, 2, 1])}
    rows, events = pack_index(*frames, 7 + 6, closes_events=False, **around)
    # Fine rows 0-11, medium 12-17, coarse 18-20, then the separators of each frame.
    assert rows.tolist() == [21, 12, 13, 4, 5, 6, 7, 22, 23, 24, 25, 20, 26]
    assert events.tolist() == [0, 0, 0] + [1] * 10
    mask = separator_mask(rows, 3, sides, closes_events=False)
    assert mask.tolist() == [row > 20 for row in rows.tolist()]
    # A newline comes before them: 21.
    rows, _ = pack_index(*frames, 11 + 6, closes_events=False, row_newline=True, **around)
    assert rows.tolist()[:4] == [22, 12, 13, 21]
    mask = separator_mask(rows, 3, sides, closes_events=False, row_newline=True)
    assert mask.tolist() == [row > 21 for row in rows.tolist()]
    rows, _ = pack_index(*frames, 7 + 2)
    assert not separator_mask(rows, 3, sides).any()


def test_the_index_of_separators_reads_nothing_back() -> None:
    # Meta tensors have no values to read.
    frame_T = torch.zeros(3, dtype=torch.int64, device="meta")
    around: dict[str, Any] = {"closes_events": False, "head_T": frame_T, "tail_T": frame_T}
    rows, events = pack_index(frame_T, frame_T, [(2, 2), (1, 2), (1, 1)], 20, **around)
    assert rows.shape == events.shape == (20,)


@bounded
@given(
    st.data(),
    st.sampled_from([1, 2, 5, 7]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    strides,
    modes,
    st.booleans(),
)
def test_separators_stand_around_their_frames(
    data: st.DataObject,
    frames: int,
    grid: tuple[int, int],
    strides_: tuple[int, int, int],
    mode: str,
    row_newline: bool,
) -> None:
    counts = st.lists(st.integers(0, 3), min_size=frames, max_size=frames)
    heads, tails = data.draw(st.none() | counts), data.draw(st.none() | counts)
    event_of = data.draw(event_of_frames(frames))
    classes = data.draw(st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    # A feature holds its frame's number, separators count from 100 on, and a newline is -1.
    patches = torch.arange(float(frames))[:, None, None].expand(frames, grid[0] * grid[1], 1)
    expected: list[int] = []
    expected_events: list[int] = []
    separator = 100
    for frame in range(frames):
        rows, columns = pooled_sides(grid, strides_[classes[frame]], mode)
        features = ([frame] * columns + [-1] * row_newline) * rows
        before = list(range(separator, separator + (heads[frame] if heads else 0)))
        separator += len(before)
        after = list(range(separator, separator + (tails[frame] if tails else 0)))
        separator += len(after)
        expected += before + features + after
        expected_events += [event_of[frame]] * len(before + features + after)
    given_: dict[str, Any] = {
        "closes_events": False,
        "row_newline": row_newline,
        "head_T": None if heads is None else torch.tensor(heads),
        "tail_T": None if tails is None else torch.tensor(tails),
    }
    separator_SD = None if heads is tails is None else torch.arange(100.0, separator)[:, None]
    video = (torch.tensor(classes), torch.tensor(event_of))
    newline = torch.tensor([-1.0]) if row_newline else None
    for total in (None, len(expected)):
        tokens, events = adaptive_pool(
            patches,
            *video,
            newline,
            grid,
            strides_,
            mode,
            total,
            separator_SD=separator_SD,
            **given_,
        )
        assert tokens.flatten().round().tolist() == expected
        assert events.tolist() == expected_events
    sides = [pooled_sides(grid, stride, mode) for stride in strides_]
    index, _ = pack_index(*video, sides, len(expected), **given_)
    mask = separator_mask(index, frames, sides, closes_events=False, row_newline=row_newline)
    assert mask.tolist() == [value >= 100 for value in expected]
