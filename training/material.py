"""What the decoder is trained on: a bank of frames and whole films, as the vision tower sees them.

Drawn when first looked at, so that a run that goes on draws only what is still needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from training.bank import Truth
from training.films import Films, draw_films
from training.lessons import Teacher
from training.run import Run
from training.seeing import BANK_MOMENTS, see, see_bank


@dataclass(frozen=True)
class Material:
    """Training frames of one seed; `towers` are those that see them."""

    run: Run
    towers: Any
    seed: int

    @cached_property
    def bank(self) -> tuple[Tensor, Truth]:
        """Features float16 [N, P, D] of the bank's frames, and what they show."""
        return see_bank(self.run, self.towers, "train", self.seed)

    @cached_property
    def teacher(self) -> Teacher:
        """Makes lessons out of the bank."""
        return Teacher(self.bank[1], BANK_MOMENTS, self.run.chat)

    @cached_property
    def films(self) -> Films:
        """Whole stories with motion and fades."""
        number, size = self.run.amounts.films, self.run.sizes.image
        return draw_films(
            "train",
            number,
            size,
            self.seed,
            self.teacher,
            lambda x: see(self.run, self.towers, x),
        )
