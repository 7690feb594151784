"""The second half of training: the decoder, first on attribute vectors and last on whole videos.

All input is the model's own dense input, without further pooling or pruning, so that the decoder is
not adapted to any compression.

Shape suffixes: N frames, P patches, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from metok_vllm.benchmarks.eventqa.questions import KINDS
from training.bank import Truth, draw_bank
from training.decoder import (
    Attributes,
    Projector,
    Student,
    answer_loss,
    pool,
    right_answers,
)
from training.lessons import Lesson, Teacher
from training.material import Material
from training.run import LossOf, Phase, Run
from training.seeing import BANK_MOMENTS

ORACLE_SIDE = 32  # pixels; only the attributes of these frames are used
FITTED_FRAMES = 256

Encode = Callable[[Truth], Tensor]


def train_on_attributes(run: Run) -> tuple[Student, Attributes]:
    """Train the decoder on learned vectors: one a frame, then one a patch."""
    sizes = run.sizes
    student = Student(sizes, run.ids, run.seed)
    attributes = Attributes(sizes.width, sizes.grid**2)
    modules: dict[str, nn.Module] = {"student": student, "attributes": attributes}
    _, truth = draw_bank(
        "train", run.amounts.bank_events, BANK_MOMENTS, ORACLE_SIDE, sizes.grid, run.seed
    )
    names = Phase("names", run.steps.names, 1e-3, stream=1)
    places = Phase("places", run.steps.places, 1e-3, stream=1)
    _on_attributes(run, names, modules, truth, attributes.frames, (32, 10, 6, 12))
    pooled = partial(_pooled_patches, attributes, sizes.grid)
    _on_attributes(run, places, modules, truth, pooled, (16, 12, 6, 10))
    return student, attributes


def _pooled_patches(attributes: Attributes, grid: int, truth: Truth) -> Tensor:
    return pool(attributes.patches(truth), grid)


def _on_attributes(
    run: Run,
    phase: Phase,
    modules: dict[str, nn.Module],
    truth: Truth,
    encode: Encode,
    batch: tuple[int, int, int, int],
) -> None:
    """A phase on attributes. `batch`: videos, questions, least and most frames of a batch."""
    videos, questions, least, most = batch
    teacher = Teacher(truth, BANK_MOMENTS, run.chat)

    def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        frames = int(rng.integers(least, most + 1))
        lesson = teacher.lesson(videos, frames, questions, rng)
        visual = encode(truth[lesson.frame_BT.flatten()])
        return _learn(run, modules["student"], visual, lesson)

    run.phase(phase, modules, lambda: loss_of)


def fit_projector(run: Run, attributes: Attributes, material: Material) -> Projector:
    """Fit a projector from vision features to the attribute vectors."""
    projector = Projector(run.sizes.width)
    phase = Phase("projector", run.steps.projector, 3e-3, stream=2)

    def prepare() -> LossOf:
        features_NPD, truth = material.bank
        sample = features_NPD[:: max(len(features_NPD) // 2048, 1)].float().flatten(0, 1)
        projector.mean.copy_(sample.mean(0))
        projector.scale.copy_(sample.std(0))

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            index = torch.from_numpy(rng.integers(0, len(features_NPD), FITTED_FRAMES))
            with torch.no_grad():
                target = attributes.patches(truth[index])
            return (projector(features_NPD[index].float()) - target).square().mean(), {}

        return loss_of

    run.phase(phase, {"projector": projector}, prepare)
    return projector


def train_on_vision(run: Run, student: Student, projector: Projector, material: Material) -> None:
    """Train decoder and projector on the vision tower's features of 6 to 16 frames."""
    modules: dict[str, nn.Module] = {"student": student, "projector": projector}
    phase = Phase("frames", run.steps.frames, 1e-3, stream=3)

    def prepare() -> LossOf:
        features_NPD, teacher = material.bank[0], material.teacher

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            lesson = teacher.lesson(12, int(rng.integers(6, 17)), 14, rng)
            frames_NPD = features_NPD[lesson.frame_BT.flatten()].float()
            return _learn(run, student, pool(projector(frames_NPD), run.sizes.grid), lesson)

        return loss_of

    run.phase(phase, modules, prepare)


def train_on_length(
    run: Run, student: Student, projector: Projector, first: Material, new: Material
) -> None:
    """Train on 8 to 128 frames and on whole stories with motion and soft cuts.

    The phases are: all lengths; mostly long videos, where two frames in 128 must be found; all
    lengths again; and `new` frames, half of them in long videos. The last phase costs accuracy on
    short videos, so the result is the mean of the last two phases.
    """
    length = Phase("length", run.steps.length, 6e-4, stream=4)
    long = Phase("long", run.steps.long, 5e-4, stream=7, floor=0.03)
    sure = Phase("sure", run.steps.sure, 4e-4, stream=8, floor=0.02)
    settle = Phase("settle", run.steps.settle, 3e-4, stream=9, floor=0.02)
    _on_videos(run, length, student, projector, first, 8, 256)
    _on_videos(run, long, student, projector, first, 20, 384)
    _on_videos(run, sure, student, projector, first, 12, 384)
    _on_videos(run, settle, student, projector, new, 12, 384, long_share=0.5)
    run.mean_of([sure.name, settle.name], {"student": student, "projector": projector})


def _on_videos(
    run: Run,
    phase: Phase,
    student: Student,
    projector: Projector,
    material: Material,
    least: int,
    batch_frames: int,
    long_share: float = 0.0,
) -> None:
    """Batches of about `batch_frames` frames with `least` to 128 a video; half of them of stories.

    In `long_share` of the batches, videos have at least 64 frames.
    """

    def prepare() -> LossOf:
        features_NPD, teacher, stories = material.bank[0], material.teacher, material.stories

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            shortest = 64 if rng.random() < long_share else least
            frames = int(2 ** rng.uniform(math.log2(shortest), math.log2(129)))
            videos = max(2, min(12, batch_frames // frames))
            if rng.random() < 0.5:
                lesson, frames_NPD = stories.lesson(videos, frames, 16, rng)
            else:
                lesson = teacher.lesson(videos, frames, 16, rng)
                frames_NPD = features_NPD[lesson.frame_BT.flatten()]
            visual = pool(projector(frames_NPD.float()), run.sizes.grid)
            return _learn(run, student, visual, lesson)

        return loss_of

    run.phase(phase, {"student": student, "projector": projector}, prepare)


def _learn(
    run: Run, student: nn.Module, visual_NPD: Tensor, lesson: Lesson
) -> tuple[Tensor, dict[str, float]]:
    videos = len(lesson.ids_BML)
    visual_BND = visual_NPD.reshape(videos, -1, visual_NPD.shape[-1])
    logits = student(run.before, visual_BND, lesson)
    right = right_answers(logits.detach(), lesson)
    figures = {"right": float(right.float().mean())}
    for kind in KINDS:
        of_kind = torch.tensor([[k == kind for k in row] for row in lesson.kinds])
        if bool(of_kind.any()):
            figures[kind] = float(right[of_kind].float().mean())
    return answer_loss(logits, lesson), figures
