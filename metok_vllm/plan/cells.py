"""Where pooled features stand on the grid of a frame's features.

M-RoPE families give a pooled token the position of the feature at its cell's centre.
"""

from __future__ import annotations


def cell_centres(rows: int, columns: int, factor: int) -> list[int]:
    """The feature at the centre of each cell of `factor` x `factor` features, row by row.

    Cells cover a grid of rows x columns features, ceil(side/factor) a side; the last ones may be
    cut off by its edge. A cell with an even side has its centre at the lower of the two middle
    places. Features are numbered row by row.
    """
    assert min(rows, columns, factor) > 0, (rows, columns, factor)
    across = _centres(columns, factor)
    return [row * columns + column for row in _centres(rows, factor) for column in across]


def _centres(side: int, factor: int) -> list[int]:
    """The middle of first and last place of each cell in one direction."""
    return [(first + min(first + factor, side) - 1) // 2 for first in range(0, side, factor)]
