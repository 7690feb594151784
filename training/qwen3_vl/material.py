"""Videos as features of pairs of frames, with questions: the decoder's training data.

Frames 2k and 2k + 1 of a video are a pair. Pairs of one event come from a bank. A pair with a cut
between its frames depends on the video, so the tower sees it when it is needed.

Shape suffixes: B videos, T frames, N pairs, P patches, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.story import Story, draw_story
from training.bank import Truth, draw_bank
from training.lessons import Lesson, Teacher, practice
from training.material import LENGTHS, story_part
from training.qwen3_vl.pairs import DRAWN, GRIDS, MAIN, MOMENTS, scaled
from training.qwen3_vl.prompt import ASKED
from training.qwen3_vl.sizes import BASE
from training.qwen3_vl.tower import Grid, Tower, encode_pairs
from training.run import Run

OTHER_SHARE = 4  # one in this many events and stories is there at the other sizes too


@dataclass(frozen=True)
class Seen:
    """Events and stories at one size: frames uint8, and pairs as the tower's features."""

    pixels: Tensor  # [events * MOMENTS, H, W, C]
    pairs: Tensor  # [events * MOMENTS / 2, P, D]
    stories: list[Tensor]  # [T / 2, P, D] each


class Videos:
    """The videos of a seed at every size."""

    def __init__(self, run: Run, tower: Tower, seed: int) -> None:
        self.run, self.tower, self.seed = run, tower, seed

    @cached_property
    def _drawn(self) -> tuple[dict[Grid, Seen], Truth, list[Story]]:
        amounts = self.run.amounts
        pixels, truth = draw_bank(
            "train", amounts.bank_events, MOMENTS, DRAWN, BASE.grid, self.seed, steady=True
        )
        stories: list[Story] = []
        shown: dict[Grid, list[Tensor]] = {grid: [] for grid in GRIDS}
        for index in range(amounts.stories):
            frames, needle = LENGTHS[index % 4], bool(index // 4 % 2)
            story = draw_story((self.seed, 7, index), frames, "train", needle=needle)
            stories.append(story)
            drawn = torch.from_numpy(pictures(story, DRAWN))
            for grid, features in shown.items():
                if grid == MAIN or index < amounts.stories // OTHER_SHARE:
                    features.append(self._encode(scaled(drawn, grid)))
        seen = {}
        for grid in GRIDS:
            share = 1 if grid == MAIN else OTHER_SHARE
            part = pixels[: amounts.bank_events // share * MOMENTS]
            small = torch.cat([scaled(chunk, grid) for chunk in part.split(512)])
            seen[grid] = Seen(small, self._encode(small), shown[grid])
        return seen, truth, stories

    def _encode(self, pixels_THWC: Tensor) -> Tensor:
        return encode_pairs(self.tower, pixels_THWC.view(-1, 2, *pixels_THWC.shape[1:]))

    def lesson(
        self, grid: Grid, videos: int, frames: int, questions: int, rng: np.random.Generator
    ) -> tuple[Lesson, Tensor]:
        """Videos of a bank's events, and the features of their pairs, [B * T / 2, P, D]."""
        seen = self._drawn[0][grid]
        lesson = self._teacher(len(seen.pixels)).lesson(videos, frames, questions, rng)
        frame_N2 = lesson.frame_BT.reshape(-1, 2)
        features_NPD = seen.pairs[frame_N2[:, 0] // 2].clone()
        event_N2 = frame_N2 // MOMENTS
        cut_N = event_N2[:, 0] != event_N2[:, 1]
        if bool(cut_N.any()):
            features_NPD[cut_N] = encode_pairs(self.tower, seen.pixels[frame_N2[cut_N]])
        return lesson, features_NPD

    def story_lesson(
        self, grid: Grid, videos: int, frames: int, questions: int, rng: np.random.Generator
    ) -> tuple[Lesson, Tensor]:
        """Parts of whole stories, with motion and soft cuts, and the features of their pairs."""
        seen, truth, stories = self._drawn
        known = seen[grid].stories
        fitting = [i for i in range(len(known)) if stories[i].frames >= frames]
        features, asked = [], []
        for _ in range(videos):
            number = int(rng.choice(fitting))
            start = 2 * int(rng.integers((stories[number].frames - frames) // 2 + 1))
            features.append(known[number][start // 2 : (start + frames) // 2])
            asked.append(practice(story_part(stories[number], start, frames), questions, rng))
        frame_BT = torch.zeros(videos, frames, dtype=torch.int64)
        return self._teacher(len(truth.count)).written(frame_BT, asked), torch.cat(features)

    def _teacher(self, frames: int) -> Teacher:
        if frames not in self._teachers:
            truth = self._drawn[1][torch.arange(frames)]
            self._teachers[frames] = Teacher(truth, MOMENTS, self.run.chat, ASKED)
        return self._teachers[frames]

    @cached_property
    def _teachers(self) -> dict[int, Teacher]:
        return {}
