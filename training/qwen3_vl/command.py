"""`python -m training.qwen3_vl.command`: train the small Qwen3-VL from the demo's weights.

Runs are seeded and counted in steps; a stopped run resumes from its folder. All input is dense.
"""

from __future__ import annotations

import argparse
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.demo import MODEL_DIR
from training.bank import draw_bank
from training.lessons import BEFORE, Teacher, practice
from training.qwen3_vl.answering import train_on_videos
from training.qwen3_vl.checkpoint import write_model
from training.qwen3_vl.decoder import Student
from training.qwen3_vl.exam import LAST_SEED, SEED, Exam, new_exam, with_exams
from training.qwen3_vl.material import Videos
from training.qwen3_vl.pairs import GRIDS, MAIN, MOMENTS
from training.qwen3_vl.prompt import ASKED
from training.qwen3_vl.seeing import train_cuts, train_tower
from training.qwen3_vl.sizes import BASE
from training.qwen3_vl.tower import Grid, Tower
from training.qwen3_vl.vocabulary import qwen3_tokenizer, special_ids
from training.qwen3_vl.warm_start import (
    demo_features,
    demo_tokens,
    load_demo,
    start_student,
    start_tower,
)
from training.run import Amounts, Phase, Run, Steps, note

STEPS = Steps(towers=500, sharp=130, frames=200, length=400, settle=450)
AMOUNTS = Amounts(tower_events=4000, bank_events=3000, stories=320)
VIDEOS = 100  # added to the seed for the decoder's videos
EXAM_VIDEOS, EXAM_EVERY = 10, 150
LAST_VIDEOS = 25
LAST_EXAMS = [(16, MAIN), (64, MAIN), (128, MAIN), *((64, grid) for grid in GRIDS if grid != MAIN)]
BATCH_TOKENS = 3072  # visual tokens


def new_run(folder: Path, seed: int, steps: Steps = STEPS, amounts: Amounts = AMOUNTS) -> Run:
    """A run in `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    chat = qwen3_tokenizer(demo_tokenizer())
    return Run(BASE, folder, seed, chat, None, special_ids(chat), steps, amounts)


def demo_tokenizer() -> Tokenizer:
    """The demo's tokenizer."""
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def started(run: Run, demo: Any) -> tuple[Tower, Student]:
    """Tower and decoder with the demo's weights."""
    torch.manual_seed(run.seed)
    tower, student = Tower(), Student()
    pixels, _ = draw_bank("train", 64, 1, BASE.image, BASE.grid, run.seed)
    start_tower(tower, demo, pixels)
    start_student(student, demo, demo_inputs(run, demo), demo_tokenizer(), run.chat)
    return tower, student


@torch.no_grad()
def demo_inputs(run: Run, demo: Any, stories: int = 12) -> list[Tensor]:
    """Embedded prompts of the demo, each a story with a question and its answer."""
    chat, rng = demo_tokenizer(), np.random.default_rng([run.seed, 21])
    embed = demo.model.language_model.embed_tokens
    inputs = []
    for number in range(stories):
        story = draw_story((run.seed, 8, number), (16, 64)[number % 2], "train")
        seen = demo_features(demo, torch.from_numpy(pictures(story, BASE.image)))
        question = practice(story, 1, rng)[0]
        asked = f"\n{question.text}<|im_end|><|im_start|>assistant\n{question.answer}<|im_end|>"
        inputs.append(
            torch.cat(
                [
                    embed(torch.tensor(chat.encode(BEFORE).ids[:-1])),
                    demo_tokens(seen, MAIN).flatten(0, 1),
                    demo.model.image_newline[None],
                    embed(torch.tensor(chat.encode(asked).ids)),
                ]
            )
        )
    return inputs


class Examiner:
    """The exams of a run. Features are kept: the tower does not change after its own phase."""

    def __init__(self, run: Run, tower: Tower) -> None:
        self.run, self.tower = run, tower

    @cached_property
    def exams(self) -> list[Exam]:
        """For exams on the way."""
        return [self.new(EXAM_VIDEOS, frames, MAIN) for frames in (64, 128)]

    def new(self, videos: int, frames: int, grid: Grid, seed: int = SEED) -> Exam:
        """An exam of this many videos."""
        return new_exam(self.tower, self._teacher, videos, frames, grid, seed)

    @cached_property
    def _teacher(self) -> Teacher:
        _, truth = draw_bank("train", 8, MOMENTS, BASE.patch, BASE.grid, self.run.seed)
        return Teacher(truth, MOMENTS, self.run.chat, ASKED)


def train_all(run: Run, out: Path, snapshot: Path) -> tuple[Tower, Student]:
    """Run every phase and write the checkpoint; usable ones on the way go to `snapshot`."""
    demo = load_demo(MODEL_DIR)
    tower, student = started(run, demo)
    train_tower(run, tower, demo)
    train_cuts(run, tower)
    examiner = Examiner(run, tower)
    videos = Videos(run, tower, run.seed + VIDEOS)
    frames = Phase("qwen3_frames", run.steps.frames, 1e-3, stream=31)
    length = Phase("qwen3_length", run.steps.length, 8e-4, stream=32)
    settle = Phase("qwen3_settle", run.steps.settle, 6e-4, stream=33, floor=0.02)
    for phase, lengths in ((frames, (6, 24)), (length, (8, 128)), (settle, (24, 128))):
        examined = partial(
            with_exams,
            every=EXAM_EVERY,
            exams=lambda: examiner.exams,
            parts=(run.chat, tower, student),
            report=partial(note, run.folder),
            snapshot=snapshot,
        )
        train_on_videos(run, phase, tower, student, videos, lengths, BATCH_TOKENS, examined)
    run.mean_of([length.name, settle.name], {"tower": tower, "student": student})
    write_model(out, run.chat, tower, student)
    for number, grid in LAST_EXAMS:
        exam = examiner.new(LAST_VIDEOS, number, grid, LAST_SEED)
        note(run.folder, {**exam.label(), **exam.right(run.chat, tower, student)})
    return tower, student


def main() -> None:
    """Train all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the run, for resuming")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    run = new_run(chosen.work, chosen.seed)
    train_all(run, chosen.out, chosen.work / "latest")
    print(json.dumps({"checkpoint": str(chosen.out), "steps": run.steps.__dict__}))


if __name__ == "__main__":
    main()
