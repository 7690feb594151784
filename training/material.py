"""The decoder's training data: a bank of frames and whole stories, as vision features.

Data is drawn at first use, so that a resumed run draws only what its remaining phases need.

Shape suffixes: B videos, T frames, N frames of all stories, P patches, D features, M questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
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
from training.seeing import BANK_MOMENTS, encode_bank, encode_frames

LONG = 128
LENGTHS = (16, 32, 64, LONG)


@dataclass(frozen=True)
class StoryBank:
    """Stories of a few lengths with the features of their frames, float16 [T, P, D] each."""

    teacher: Teacher
    stories: list[Story]
    features: list[Tensor]

    def lesson(
        self, videos: int, frames: int, questions: int, rng: np.random.Generator
    ) -> tuple[Lesson, Tensor]:
        """A lesson on parts of stories with `frames` frames, and their features [B * T, P, D]."""
        fitting = [i for i, story in enumerate(self.stories) if story.frames >= frames]
        features, questions_of = [], []
        for _ in range(videos):
            number = int(rng.choice(fitting))
            story = self.stories[number]
            start = int(rng.integers(story.frames - frames + 1))
            part = story_part(story, start, frames)
            features.append(self.features[number][start : start + frames])
            questions_of.append(practice(part, questions, rng))
        frame_BT = torch.zeros(videos, frames, dtype=torch.int64)
        return self.teacher.written(frame_BT, questions_of), torch.cat(features)


def story_part(story: Story, start: int, frames: int) -> Story:
    """A part of a story as a story. Partial events remain, even with a single frame."""
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


def draw_stories(
    split: Split,
    number: int,
    size: int,
    seed: int,
    teacher: Teacher,
    encode: Callable[[Tensor], Tensor],
) -> StoryBank:
    """`number` stories; `encode` gives the features of uint8 frames."""
    stories, features = [], []
    for index in range(number):
        frames = LENGTHS[index % len(LENGTHS)]
        needle = bool(index // len(LENGTHS) % 2)
        story = draw_story((seed, 7, index), frames, split, needle=needle)
        stories.append(story)
        features.append(encode(torch.from_numpy(pictures(story, size))))
    return StoryBank(teacher, stories, features)


@dataclass(frozen=True)
class Material:
    """The training data of one seed, encoded by `towers`."""

    run: Run
    towers: Any
    seed: int

    @cached_property
    def bank(self) -> tuple[Tensor, Truth]:
        """Features float16 [N, P, D] of the bank's frames, and their truth."""
        return encode_bank(self.run, self.towers, "train", self.seed)

    @cached_property
    def teacher(self) -> Teacher:
        """Makes lessons from the bank."""
        return Teacher(self.bank[1], BANK_MOMENTS, self.run.chat)

    @cached_property
    def stories(self) -> StoryBank:
        """Whole stories with motion and fades."""
        number, size = self.run.amounts.stories, self.run.sizes.image
        return draw_stories(
            "train",
            number,
            size,
            self.seed,
            self.teacher,
            partial(encode_frames, self.run, self.towers),
        )
