"""How a frame is laid for showing: the eight ways to put a picture on its sides."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type


@dataclass(frozen=True)
class Orientation:
    """First transposed, then mirrored left to right and top to bottom, as far as set."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @property
    def is_mirror(self) -> bool:
        """Whether no turn alone does the same."""
        return self.transposed ^ self.mirrored_x ^ self.mirrored_y

    def upright(self, frame_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The frame as it is shown."""
        if self.transposed:
            frame_HWC = frame_HWC.transpose(1, 0, 2)
        if self.mirrored_x:
            frame_HWC = frame_HWC[:, ::-1]
        if self.mirrored_y:
            frame_HWC = frame_HWC[::-1]
        return np.ascontiguousarray(frame_HWC)


def orientation_of(frame: Any) -> Orientation:
    """The orientation nearest to the display matrix of a PyAV frame; as stored without one."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y, with y downwards.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)
