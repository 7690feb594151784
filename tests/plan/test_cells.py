"""Centres of pooled cells: the middle of the places that a cell has, on any rectangle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.plan.cells import cell_centres
from tests.reference.strategies import bounded

sides = st.integers(1, 30)


def middles(side: int, factor: int) -> list[int]:
    """Of the places 0 .. side - 1 that share a cell, the middle one, the lower of two."""
    cells: dict[int, list[int]] = {}
    for place in range(side):
        cells.setdefault(place // factor, []).append(place)
    return [places[(len(places) - 1) // 2] for places in cells.values()]


@bounded
@given(sides, sides, sides)
def test_a_centre_is_the_middle_of_its_cell(rows: int, columns: int, factor: int) -> None:
    expected = []
    for row in middles(rows, factor):
        for column in middles(columns, factor):
            expected.append(row * columns + column)
    assert cell_centres(rows, columns, factor) == expected


def test_numbers_made_by_hand() -> None:
    assert cell_centres(2, 3, 1) == [0, 1, 2, 3, 4, 5]
    # Rows 0-1, 2-3, 4 and columns 0-1, 2-3, 4-5, 6.
    assert cell_centres(5, 7, 2) == [0, 2, 4, 6, 14, 16, 18, 20, 28, 30, 32, 34]
    # Rows 0-3, 4 and columns 0-3, 4-6.
    assert cell_centres(5, 7, 4) == [8, 12, 29, 33]
    assert cell_centres(3, 3, 8) == [4]
