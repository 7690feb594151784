"""A training run: its settings, and the optimiser loop of a phase.

One file a phase holds everything that the next step needs, so that a stopped run can resume.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.lessons import BEFORE
from training.sizes import Sizes


@dataclass(frozen=True)
class Steps:
    """The number of steps of each phase."""

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
    """Numbers of events for the towers and for the decoder, and of whole stories."""

    tower_events: int = 12_000
    bank_events: int = 4_000
    stories: int = 400


@dataclass(frozen=True)
class Run:
    """The folder, seed, sizes, tokenizers and amounts of a run."""

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
        """Token ids before the video."""
        return torch.tensor(self.chat.encode(BEFORE).ids[:-1])

    def phase(
        self, phase: Phase, modules: Mapping[str, nn.Module], prepare: Callable[[], LossOf]
    ) -> None:
        """Run a phase unless it is complete, and load its weights into `modules`.

        `prepare` draws the data and returns the loss; it is called only if steps remain.
        """
        path = self.folder / f"{phase.name}.pt"
        if not path.exists() or torch.load(path, weights_only=True)["step"] < phase.steps:
            train(phase, modules, prepare(), self.folder, self.seed)
        state = torch.load(path, weights_only=True)["modules"]
        for name, module in modules.items():
            module.load_state_dict(state[name])
            module.eval()

    def mean_of(self, names: Sequence[str], modules: Mapping[str, nn.Module]) -> None:
        """Load the mean of the final weights of these phases into `modules`.

        The mean of consecutive phases generalises better than either. Source: model soups,
        arXiv 2203.05482.
        """
        files = [self.folder / f"{name}.pt" for name in names]
        ends = [torch.load(file, weights_only=True)["modules"] for file in files]
        for name, module in modules.items():
            first = ends[0][name]
            mean = {key: torch.stack([end[name][key] for end in ends]).mean(0) for key in first}
            module.load_state_dict(mean)


LOG_EVERY = 25
SAVE_EVERY = 100

# Returns the loss of a step and figures for the log, from the step's number and random generator.
LossOf = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Phase:
    """A part of the training: linear warm-up to `rate`, then a cosine decay to `floor` of it.

    `stream` separates its random numbers from those of other phases.
    """

    name: str
    steps: int
    rate: float
    stream: int = 0
    warmup: int = 50
    floor: float = 0.1

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


def train(
    phase: Phase,
    modules: Mapping[str, nn.Module],
    loss_of: LossOf,
    folder: Path,
    seed: int,
) -> None:
    """Run a phase to its end from the state in its file in `folder`.

    Each step has its own random generator, so a resumed run equals an uninterrupted one. The
    optimiser is AdamW (0.9, 0.95) with decay 0.02 and clipping at 1; these are our choices.
    """
    path = folder / f"{phase.name}.pt"
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, phase.rate, betas=(0.9, 0.95), weight_decay=0.02)
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        first = state["step"]
        if first < phase.steps:
            optimiser.load_state_dict(state["optimiser"])
    for module in modules.values():
        module.train()
    started, figures = time.monotonic(), []
    for step in range(first, phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.rate_at(step)
        loss, more = loss_of(step, np.random.default_rng([seed, phase.stream, step]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        figures.append({"loss": float(loss.detach()), **more})
        last = step + 1 == phase.steps
        if (step + 1) % LOG_EVERY == 0 or last:
            # Not every batch has all figures: short videos have no needle.
            names = {name: None for of_step in figures for name in of_step}
            mean = {
                name: float(np.mean([of_step[name] for of_step in figures if name in of_step]))
                for name in names
            }
            line: dict[str, float | str | int] = {"phase": phase.name, "step": step + 1, **mean}
            line["seconds"] = time.monotonic() - started
            note(folder, line)
            figures = []
        if (step + 1) % SAVE_EVERY == 0 or last:
            states = {name: module.state_dict() for name, module in modules.items()}
            state = {"modules": states, "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    for module in modules.values():
        module.eval()


def note(folder: Path, line: dict[str, float | str | int]) -> None:
    """Print a line and add it to the log in `folder`."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
    text = json.dumps(rounded)
    print(text, flush=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(text + "\n")
