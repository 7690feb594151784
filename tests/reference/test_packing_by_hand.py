"""The reference's pooling and packing on rectangles, with text around frames: numbers on paper."""

from __future__ import annotations

import torch

from tests.reference import stage1

# A frame of 3 x 5 features: row by row 0 to 14.
FRAME_PD = torch.arange(15.0)[:, None]


def test_area_takes_the_mean_of_what_a_cell_has() -> None:
    # Cells of 2 x 2; the last column has one feature a row, the last row one a column.
    pooled = stage1.pool_frame(FRAME_PD, (3, 5), 2, "area")
    assert pooled.flatten().tolist() == [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]
    assert stage1.frame_length((3, 5), 2, "area", stage1.NOWHERE) == 6
    pooled = stage1.pool_frame(FRAME_PD, (3, 5), 4, "area")
    assert pooled.flatten().tolist() == [6.5, 9.0]
    assert torch.equal(stage1.pool_frame(FRAME_PD, (3, 5), 1, "area"), FRAME_PD)


def test_average_drops_what_makes_no_whole_cell() -> None:
    pooled = stage1.pool_frame(FRAME_PD, (3, 5), 2, "average")
    assert pooled.flatten().tolist() == [3.0, 5.0]


def test_text_stays_around_its_frame_and_belongs_to_its_event() -> None:
    patches_TPD = torch.stack([FRAME_PD, 100 + FRAME_PD])
    text = torch.tensor([[-1.0], [-2.0], [-3.0]])
    packed = stage1.pack(
        patches_TPD,
        [0, 2],
        [0, 1],
        torch.zeros(1),
        (3, 5),
        (2, 2, 4),
        "area",
        stage1.NOWHERE,
        before=[text[:1], text[:2]],
        after=[text[:2], text[:0]],
    )
    first = [-1.0, 3.0, 5.0, 6.5, 10.5, 12.5, 14.0, -1.0, -2.0]
    assert packed.tokens_ND.flatten().tolist() == [*first, -1.0, -2.0, 106.5, 109.0]
    assert packed.event_of_token == [0] * 9 + [1] * 4
    assert packed.separators == [0, 7, 8, 9, 10]


def test_rows_of_a_rectangle_end_with_newlines() -> None:
    packed = stage1.pack(
        FRAME_PD[None], [0], [0], torch.tensor([-1.0]), (3, 5), (2, 2, 2), "area", stage1.ROW
    )
    assert packed.tokens_ND.flatten().tolist() == [3.0, 5.0, 6.5, -1.0, 10.5, 12.5, 14.0, -1.0]
    assert stage1.frame_length((3, 5), 2, "area", stage1.ROW) == 8
