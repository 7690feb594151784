"""Training: true lessons, exact resumption, and a checkpoint equal to the trained model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import draw_question
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.benchmarks.eventqa.world import COLOURS, SHAPES
from training import answering, seeing
from training.bank import draw_bank
from training.command import train_all
from training.decoder import Projector, Student, pool
from training.lessons import (
    IGNORED,
    Teacher,
    layout,
)
from training.run import Amounts, Run, Steps
from training.sizes import Sizes
from training.tokenizers import (
    alignment_tokenizer,
    chat_tokenizer,
    special_ids,
)

SIZES = Sizes(
    width=32, heads=2, kv_heads=1, decoder_layers=2, decoder_ffn=48, tower_layers=2,
    video_tower_layers=1, tower_ffn=48, text_layers=1,
)  # fmt: skip
STEPS = Steps(**{field.name: 2 for field in fields(Steps)} | {"names": 4})


def new_run(folder: Path, steps: Steps = STEPS) -> Run:
    folder.mkdir(exist_ok=True)
    chat = chat_tokenizer(SIZES.vocab)
    words = alignment_tokenizer(SIZES.text_vocab)
    return Run(SIZES, folder, 5, chat, words, special_ids(chat), steps, Amounts(60, 60, 8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A model from two steps of every phase."""
    folder = tmp_path_factory.mktemp("training")
    run = new_run(folder / "work")
    train_all(run, folder / "model")
    return run, folder / "model"


@pytest.fixture(scope="module")
def teacher() -> tuple[Teacher, Any]:
    _, truth = draw_bank("train", 60, 4, 32, SIZES.grid, 1)
    return Teacher(truth, 4, chat_tokenizer(SIZES.vocab)), truth


def test_lessons_are_true_of_their_frames(teacher: tuple[Teacher, Any]) -> None:
    made, truth = teacher
    lesson = made.lesson(6, 16, 12, np.random.default_rng(0))
    colours = list(COLOURS)
    for frame_T, questions, ids_ML, label_ML in zip(
        lesson.frame_BT, lesson.questions, lesson.ids_BML, lesson.label_BML, strict=True
    ):
        shown = truth[frame_T]
        names = list(dict.fromkeys(colours[i] for i in shown.background.tolist()))
        for question, ids_L, label_L in zip(questions, ids_ML, label_ML, strict=True):
            if question.kind == "list":
                assert question.answer == " ".join(names)
            if question.kind == "scene":
                index = shown.background.tolist().index(colours.index(question.text.split()[4]))
                colour, shape = int(shown.colour[index]), int(shown.shape[index])
                assert question.answer == f"{colours[colour]} {SHAPES[shape]}"
            wanted = label_L[label_L != IGNORED]
            text = made.tokenizer.decode(wanted.tolist(), skip_special_tokens=False)
            assert text == question.answer + "<|im_end|>"
            # The label of a row is the next token.
            place = (label_L != IGNORED).nonzero().flatten()
            assert (ids_L[place + 1] == wanted).all()


def test_a_question_attends_to_the_video_and_itself() -> None:
    place, mask = layout(5, 3, 4)
    assert place.tolist() == [*range(5), *(list(range(5, 9)) * 3)]
    for row in range(17):
        for column in range(17):
            own = (row - 5) // 4 == (column - 5) // 4 if min(row, column) >= 5 else column < 5
            assert bool(mask[row, column]) == (own and column <= row), (row, column)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole, parts = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    answering.train_on_attributes(whole)
    stopped = RuntimeError("stopped")

    def stop_at(step: int) -> None:
        def learn(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) > step:
                raise stopped
            return learn_as_ever(*arguments)

        calls: list[int] = []
        learn_as_ever = answering._learn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answering, "_learn", learn)
            patch.setattr("training.run.SAVE_EVERY", 1)
            with pytest.raises(RuntimeError, match="stopped"):
                answering.train_on_attributes(parts)

    stop_at(3)
    answering.train_on_attributes(parts)
    for phase in ("names", "places"):
        one, other = (
            torch.load(run.folder / f"{phase}.pt", weights_only=True)["modules"]["student"]
            for run in (whole, parts)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_mean_of_two_phases_is_that_of_each_weight(tmp_path: Path) -> None:
    run, module = new_run(tmp_path / "run"), torch.nn.Linear(3, 2)
    ends = []
    for name in ("sure", "settle", "long"):
        ends.append({key: torch.randn_like(weight) for key, weight in module.state_dict().items()})
        torch.save({"modules": {"part": ends[-1]}, "step": 2}, run.folder / f"{name}.pt")
    run.mean_of(["sure", "settle"], {"part": module})
    for key, weight in module.state_dict().items():
        torch.testing.assert_close(weight, (ends[0][key] + ends[1][key]) / 2)


def test_the_checkpoint_is_the_model_that_was_trained(trained: tuple[Run, Path]) -> None:
    """Hugging Face's model and processor on the written files, against the training's own pass."""
    run, folder = trained
    model, info = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(folder)
    story = draw_story((1,), 6, "test")
    question = draw_question(story, "list", np.random.default_rng(0))
    frames = pictures(story, SIZES.image)
    parts = [{"type": "video"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(text=prompt, videos=[frames], return_tensors="pt")
    assert (inputs.input_ids == processor.video_token_id).sum() == 6 * SIZES.frame_tokens + 1
    with torch.inference_mode():
        served = model(**inputs).logits[0, -1]

    student, projector = Student(SIZES, run.ids, 0), Projector(SIZES.width)
    run.mean_of(["sure", "settle"], {"student": student, "projector": projector})
    towers = seeing.train_towers(run)
    _, truth = draw_bank("train", 4, 4, 32, SIZES.grid, 1)
    lesson = Teacher(truth, 4, run.chat).written(
        torch.zeros(1, 6, dtype=torch.int64),
        [[draw_question(story, "scene", np.random.default_rng(1)), question]],
    )
    with torch.inference_mode():
        features = seeing.encode_frames(run, towers, torch.from_numpy(frames)).float()
        visual = pool(projector(features), SIZES.grid).reshape(1, -1, SIZES.width)
        logits = student(run.before, visual, lesson).view(2, -1, SIZES.vocab)
    first = int((lesson.label_BML[0, 1] != IGNORED).nonzero()[0])
    # Weights are written in bfloat16, so the two differ by its rounding.
    torch.testing.assert_close(served, logits[1, first], atol=0.05, rtol=0.05)
    assert served.std() > 0.1


def test_alignment_towers_load(trained: tuple[Run, Path]) -> None:
    model, info = transformers.AutoModel.from_pretrained(
        trained[1] / "alignment", dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "SiglipModel"
    assert not any(info.values()), info
