"""Held-out videos, asked about during training.

The videos are drawn with the split `test` and a seed that no table of the documentation uses.
Answers are checked token by token after the right ones before them, which equals greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from metok_vllm.benchmarks.eventqa.clips import FPS, draw_questions
from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import KINDS
from training.decoder import right_answers
from training.lessons import Lesson, Teacher
from training.qwen3_vl.answering import answers
from training.qwen3_vl.checkpoint import write_model
from training.qwen3_vl.decoder import Student
from training.qwen3_vl.pairs import DRAWN, scaled
from training.qwen3_vl.prompt import timestamps
from training.qwen3_vl.tower import Grid, Tower, encode_pairs
from training.run import LossOf

SEED = 77
LAST_SEED = 78  # of the exams after training, which nothing is chosen by


@dataclass(frozen=True)
class Exam:
    """Videos of one length and size with a question of each kind."""

    frames: int
    grid: Grid
    items: list[tuple[Lesson, Tensor]]

    def label(self) -> dict[str, float | str | int]:
        """What a log's line says about the exam."""
        patches = f"{self.grid[0]}x{self.grid[1]}"
        return {"exam": self.frames, "patches": patches, "videos": len(self.items)}

    @torch.no_grad()
    def right(self, tokenizer: Tokenizer, tower: Tower, student: Student) -> dict[str, float]:
        """The share of right answers, in all and by kind."""
        marks: dict[str, list[bool]] = {}
        times = timestamps(self.frames // 2, FPS)
        for lesson, features_NPD in self.items:
            logits = answers(tokenizer, tower, student, lesson, features_NPD, times, self.grid)
            right = right_answers(logits, lesson)[0].tolist()
            for kind, mark in zip(lesson.kinds[0], right, strict=True):
                marks.setdefault("right", []).append(mark)
                marks.setdefault(kind, []).append(mark)
        return {kind: float(np.mean(of_kind)) for kind, of_kind in marks.items()}


def new_exam(
    tower: Tower, teacher: Teacher, videos: int, frames: int, grid: Grid, seed: int = SEED
) -> Exam:
    """An exam of `videos` videos, with the features that the tower has now."""
    items = []
    for story, questions in draw_questions(videos, frames, "test", seed, KINDS):
        drawn = scaled(torch.from_numpy(pictures(story, DRAWN)), grid)
        features = encode_pairs(tower, drawn.view(-1, 2, *drawn.shape[1:]))
        lesson = teacher.written(torch.zeros(1, frames, dtype=torch.int64), [questions])
        items.append((lesson, features))
    return Exam(frames, grid, items)


def with_exams(
    loss_of: LossOf,
    every: int,
    exams: Callable[[], list[Exam]],
    parts: tuple[Tokenizer, Tower, Student],
    report: Callable[[dict[str, float | str | int]], None],
    snapshot: Path,
) -> LossOf:
    """`loss_of` with exams and a checkpoint in `snapshot` at every `every`th step."""

    def examined(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step % every == 0 and step:
            for exam in exams():
                report({**exam.label(), "step": step, **exam.right(*parts)})
            write_model(snapshot, *parts)
        return loss_of(step, rng)

    return examined
