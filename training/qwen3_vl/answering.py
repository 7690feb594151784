"""Training of the mergers and the decoder on questions about videos, on dense input.

Shape suffixes: B videos, T frames, N pairs, P patches, D features, M questions, L tokens, W words.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from metok_vllm.benchmarks.eventqa.questions import KINDS
from training.decoder import answer_loss, right_answers
from training.lessons import Lesson
from training.qwen3_vl.decoder import Student
from training.qwen3_vl.material import Videos
from training.qwen3_vl.pairs import GRIDS
from training.qwen3_vl.prompt import timestamps, video_prompt
from training.qwen3_vl.sizes import MERGE
from training.qwen3_vl.tower import Grid, Tower
from training.run import LossOf, Phase, Run

SHARES = (0.8, 0.02, 0.06, 0.06, 0.03, 0.03)  # of the batches, by size as in GRIDS
QUESTIONS = 16
USUAL_FPS = 2.0  # of event-QA's clips; half of the batches have it
FPS = (0.25, 16.0)  # of the others


def answers(
    tokenizer: Tokenizer,
    tower: Tower,
    student: Student,
    lesson: Lesson,
    features_NPD: Tensor,
    times: list[float],
    grid: Grid,
) -> Tensor:
    """Logits [B, M * L, W] of the questions' rows."""

    def of_videos(tokens_NKD: Tensor) -> Tensor:
        return tokens_NKD.reshape(len(lesson.ids_BML), -1, tokens_NKD.shape[-1])

    prompt = video_prompt(tokenizer, times, grid)
    with torch.autocast("cpu", torch.bfloat16):
        visual_BVD = of_videos(tower.tokens(features_NPD))
        deepstack = [of_videos(level_NKD) for level_NKD in tower.deepstack(features_NPD)]
        logits: Tensor = student(prompt, visual_BVD, deepstack, lesson)
    return logits


def train_on_videos(
    run: Run,
    phase: Phase,
    tower: Tower,
    student: Student,
    videos: Videos,
    lengths: tuple[int, int],
    batch_tokens: int,
    examined: Callable[[LossOf], LossOf],
) -> None:
    """A phase on videos with `lengths` frames (least, most), half of them whole stories.

    The tower's layers stay as they are; its mergers learn. A batch has about `batch_tokens` visual
    tokens.
    """
    tower.requires_grad_(False)
    tower.mergers().requires_grad_(True)

    def prepare() -> LossOf:
        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            grid = GRIDS[int(rng.choice(len(GRIDS), p=SHARES))]
            cells = grid[0] * grid[1] // MERGE**2
            least, most = (math.log2(length) for length in lengths)
            pairs = max(round(2 ** rng.uniform(least, most) / 2), 1)
            number = max(2, min(12, batch_tokens // (cells * pairs)))
            draw = videos.story_lesson if rng.random() < 0.5 else videos.lesson
            lesson, features_NPD = draw(grid, number, 2 * pairs, QUESTIONS, rng)
            fps = USUAL_FPS if rng.random() < 0.5 else float(np.exp(rng.uniform(*np.log(FPS))))
            times = timestamps(pairs, fps)
            logits = answers(run.chat, tower, student, lesson, features_NPD, times, grid)
            return answer_loss(logits, lesson), _figures(logits.detach(), lesson)

        return examined(loss_of)

    modules: dict[str, nn.Module] = {"tower": tower, "student": student}
    run.phase(phase, modules, prepare)


def _figures(logits: Tensor, lesson: Lesson) -> dict[str, float]:
    right = right_answers(logits, lesson)
    figures = {"right": float(right.float().mean())}
    for kind in KINDS:
        of_kind = torch.tensor([[k == kind for k in row] for row in lesson.kinds])
        if bool(of_kind.any()):
            figures[kind] = float(right[of_kind].float().mean())
    return figures
