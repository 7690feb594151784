"""Batches for the decoder: a video, then many questions that attend to it and not to each other.

Every question has the tokens and positions of a prompt with this question alone. The questions of a
video share its prefill.

Shape suffixes: B videos, T frames, M questions, L tokens, N rows of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metok_vllm.benchmarks.eventqa.questions import KINDS, Kind, Question, draw_question
from metok_vllm.benchmarks.eventqa.story import Event, Story, event_lengths
from metok_vllm.benchmarks.eventqa.world import COLOURS, SHAPES, Scene
from training.bank import Truth

BEFORE = "<|im_start|>user <video>"
ASKED = "\n{}<|im_end|><|im_start|>assistant\n"
IGNORED = -100
PRACTICE: tuple[Kind, ...] = (*KINDS, "exists", "order", "order", "count")


@dataclass(frozen=True)
class Lesson:
    """B videos of T frames, as numbers of the bank's frames, and M questions about each."""

    frame_BT: Tensor
    ids_BML: Tensor
    label_BML: Tensor  # IGNORED where nothing is to be learned
    kinds: list[list[Kind]]
    questions: list[list[Question]]


def practice(story: Story, number: int, rng: np.random.Generator) -> list[Question]:
    """Questions of all kinds about a story; kinds that take longer to learn are more frequent."""
    kinds = [kind for kind in PRACTICE if kind != "needle" or story.needle is not None]
    return [draw_question(story, kind, rng) for kind in rng.permutation(np.resize(kinds, number))]


class Teacher:
    """Makes lessons from a bank of events with `per_event` frames each.

    `asked` is the prompt from the video's end to the answer, with {} for the question.
    """

    def __init__(self, truth: Truth, per_event: int, tokenizer: Any, asked: str = ASKED) -> None:
        self.per_event = per_event
        self.tokenizer = tokenizer
        self.asked = asked
        first = slice(None, None, per_event)
        attributes = (truth.background, truth.colour, truth.shape, truth.count, truth.dot)
        self.numbers = torch.stack([values[first] for values in attributes], 1).numpy()
        self.of_background = [
            np.flatnonzero(self.numbers[:, 0] == number) for number in range(len(COLOURS))
        ]

    def lesson(self, videos: int, frames: int, questions: int, rng: np.random.Generator) -> Lesson:
        """A batch; about half of the videos with at least 16 frames have a needle."""
        rows, batch = [], []
        for _ in range(videos):
            story, frame_T = self._story(frames, rng)
            rows.append(frame_T)
            batch.append(practice(story, questions, rng))
        return self.written(torch.from_numpy(np.stack(rows)), batch)

    def written(self, frame_BT: Tensor, questions: list[list[Question]]) -> Lesson:
        """A lesson with these frames and questions, as token ids."""
        ids_BML, label_BML = self._tokens(questions)
        kinds_BM = [[question.kind for question in of_video] for of_video in questions]
        return Lesson(frame_BT, ids_BML, label_BML, kinds_BM, questions)

    def _story(self, frames: int, rng: np.random.Generator) -> tuple[Story, npt.NDArray[np.int64]]:
        needle = frames >= 16 and bool(rng.random() < 0.5)
        number = int(rng.integers(3 if needle else min(2, frames // 2), min(6, frames // 2) + 1))
        place = int(rng.integers(1, number - 1)) if needle else None
        chosen: list[int] = []
        for background in rng.permutation(len(COLOURS))[:number]:
            things = {tuple(self.numbers[event, 1:3]) for event in chosen}
            while True:
                event = int(rng.choice(self.of_background[background]))
                if tuple(self.numbers[event, 1:3]) not in things:
                    break
            chosen.append(event)
        lengths = event_lengths(frames, number, place, rng)
        ends = np.cumsum(lengths)
        events = tuple(
            Event(self._scene(event), int(end - length), int(end))
            for event, length, end in zip(chosen, lengths, ends, strict=True)
        )
        moments = rng.integers(0, self.per_event, frames)
        frame_T = np.repeat(np.array(chosen) * self.per_event, lengths) + moments
        return Story((0,), frames, events, place), frame_T

    def _scene(self, event: int) -> Scene:
        colours = list(COLOURS)
        background, colour, shape, count, dot = map(int, self.numbers[event])
        return Scene(
            colours[background], colours[colour], SHAPES[shape], count + 1, colours[dot], "plain"
        )

    def _tokens(self, questions: list[list[Question]]) -> tuple[Tensor, Tensor]:
        texts = [question for of_video in questions for question in of_video]
        before = [self.asked.format(q.text) for q in texts]
        after = [f"{q.answer}<|im_end|>" for q in texts]
        prompts = [encoding.ids for encoding in self.tokenizer.encode_batch(before)]
        answers = [encoding.ids for encoding in self.tokenizer.encode_batch(after)]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            # The logits of a row predict the next token.
            labels[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(answer)
        shape = (len(questions), -1, length)
        return ids.reshape(shape), labels.reshape(shape)


def layout(video_rows: int, questions: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions [N] and the attention mask bool [N, N] of a video with its questions."""
    branch_N = torch.cat(
        [torch.zeros(video_rows, dtype=torch.int64), 1 + torch.arange(questions * length) // length]
    )
    place_N = torch.cat(
        [torch.arange(video_rows), video_rows + torch.arange(questions * length) % length]
    )
    same = branch_N[:, None] == branch_N[None]
    video = branch_N[None] == 0
    return place_N, (same | video) & (place_N[:, None] >= place_N[None])
