"""Whole stories as the vision tower sees them, cut to any length: motion, fades and needles.

Shape suffixes: B videos, T frames, N frames of all films, P patches, D features, M questions.
"""
# MERGED DOC
# """What the decoder is trained on: a bank of frames and whole films, as the vision tower sees them.
#
# Drawn when first looked at, so that a run that goes on draws only what is still needed.
# """

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.story import Event, Story, draw_story
from metok_vllm.benchmarks.eventqa.world import Split
from training.bank import Truth
from training.lessons import Lesson, Teacher, practice
from training.run import Run
from training.seeing import BANK_MOMENTS, see, see_bank

LONG = 128
LENGTHS = (16, 32, 64, LONG)


@dataclass(frozen=True)
class Films:
    """Stories of a few lengths with the features of their frames, float16 [T, P, D] each."""

    teacher: Teacher
    stories: list[Story]
    features: list[Tensor]

    def lesson(
        self, videos: int, frames: int, questions: int, rng: np.random.Generator
    ) -> tuple[Lesson, Tensor]:
        """A batch of stretches of `frames` frames and their features [B * T, P, D]."""
        fitting = [i for i, story in enumerate(self.stories) if story.frames >= frames]
        seen, asked = [], []
        for _ in range(videos):
            number = int(rng.choice(fitting))
            story = self.stories[number]
            start = int(rng.integers(story.frames - frames + 1))
            part = stretch(story, start, frames)
            seen.append(self.features[number][start : start + frames])
            asked.append(practice(part, questions, rng))
        frame_BT = torch.zeros(videos, frames, dtype=torch.int64)
        return self.teacher.written(frame_BT, asked), torch.cat(seen)


def stretch(story: Story, start: int, frames: int) -> Story:
    """A part of a story as a story; an event of which one frame is left stays part of it."""
    end = start + frames
    needle = None
    events: list[Event] = []
    for number, event in enumerate(story.events):
        first, last = max(event.start, start), min(event.end, end)
        if last > first:
            if number == story.needle and last - first == event.end - event.start:
                needle = len(events)
            events.append(Event(event.scene, first - start, last - start, event.soft))
    return Story(story.seed, frames, tuple(events), needle)


def draw_films(
    split: Split,
    number: int,
    size: int,
    seed: int,
    teacher: Teacher,
    see: Callable[[Tensor], Tensor],
) -> Films:
    """`number` stories, every second with a needle; `see` gives features of uint8 frames."""
    stories, features = [], []
    for index in range(number):
        frames = LENGTHS[index % len(LENGTHS)]
        needle = bool(index // len(LENGTHS) % 2)
        story = draw_story((seed, 7, index), frames, split, needle=needle)
        stories.append(story)
        features.append(see(torch.from_numpy(pictures(story, size))))
    return Films(teacher, stories, features)


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
