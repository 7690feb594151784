"""What all phases of one training run share, and where they leave off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.lessons import BEFORE
from training.sizes import Sizes
from training.stepping import LossOf, Phase, train


@dataclass(frozen=True)
class Steps:
    """How long each phase is."""

    towers: int = 1400
    shapes: int = 600
    sharp: int = 500
    names: int = 450
    places: int = 400
    projector: int = 300
    frames: int = 600
    length: int = 550
    long: int = 200
    sure: int = 900
    settle: int = 1000


@dataclass(frozen=True)
class Amounts:
    """Events drawn for the towers and for the decoder, and whole films."""

    tower_events: int = 12_000
    bank_events: int = 4_000
    films: int = 400


@dataclass(frozen=True)
class Run:
    """Where a run lives, its seed, tokenizers and amounts."""

    sizes: Sizes
    folder: Path
    seed: int
    chat: Any
    words: Any
    ids: dict[str, int]
    steps: Steps
    amounts: Amounts = Amounts()

    @property
    def before(self) -> Tensor:
        """Token ids in front of the video."""
        return torch.tensor(self.chat.encode(BEFORE).ids[:-1])

    def phase(
        self, phase: Phase, modules: Mapping[str, nn.Module], prepare: Callable[[], LossOf]
    ) -> None:
        """Run a phase to its end unless it was; `modules` are then as it left them.

        `prepare` gives the loss; what it needs is drawn only if there is something to train.
        """
        path = self.folder / f"{phase.name}.pt"
        if not path.exists() or torch.load(path, weights_only=True)["step"] < phase.steps:
            train(phase, modules, prepare(), self.folder, self.seed)
        state = torch.load(path, weights_only=True)["modules"]
        for name, module in modules.items():
            module.load_state_dict(state[name])
            module.eval()

    def mean_of(self, names: Sequence[str], modules: Mapping[str, nn.Module]) -> None:
        """Leave `modules` at the mean of the weights with which phases that are done ended.

        Phases of one path end in one valley, and its middle does better on what neither has seen.
        Source: model soups, arXiv 2203.05482.
        """
        files = [self.folder / f"{name}.pt" for name in names]
        ends = [torch.load(file, weights_only=True)["modules"] for file in files]
        for name, module in modules.items():
            first = ends[0][name]
            mean = {key: torch.stack([end[name][key] for end in ends]).mean(0) for key in first}
            module.load_state_dict(mean)
