"""Qwen3-VL's training: a checkpoint equal to the trained model, true pairs, the demo's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.video_utils import VideoMetadata

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import draw_question
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.demo import MODEL_DIR
from training.bank import draw_bank
from training.lessons import IGNORED, Teacher
from training.qwen3_vl import command
from training.qwen3_vl.answering import answers
from training.qwen3_vl.decoder import Student
from training.qwen3_vl.material import Videos
from training.qwen3_vl.pairs import MAIN, MOMENTS
from training.qwen3_vl.prompt import ASKED, timestamps
from training.qwen3_vl.tower import Tower, encode_pairs
from training.qwen3_vl.warm_start import demo_features, demo_tokens, load_demo
from training.run import Amounts, Run, Steps

ROOT = Path(__file__).resolve().parents[2]
STEPS = Steps(towers=2, sharp=2, frames=1, length=1, settle=1)
AMOUNTS = Amounts(tower_events=16, bank_events=48, stories=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Tower, Student]:
    """A model from one or two steps of every phase."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    run = command.new_run(folder / "work", 5, STEPS, AMOUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.qwen3_vl.seeing.PATCHES", 512)
        patch.setattr(command, "BATCH_TOKENS", 256)
        patch.setattr(command, "LAST_VIDEOS", 1)
        patch.setattr(command, "LAST_EXAMS", [(16, MAIN)])
        tower, student = command.train_all(run, folder / "model", folder / "latest")
    return run, folder / "model", tower, student


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_the_checkpoint_is_the_model_that_was_trained(
    trained: tuple[Run, Path, Tower, Student], height: int, width: int
) -> None:
    """Hugging Face's model and processor on the written files, against the training's own pass.

    Fails for a wrong name or order of a weight, patch, position or timestamp.
    """
    run, folder, tower, student = trained
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(folder)
    story = draw_story((1,), 6, "test")
    question = draw_question(story, "list", np.random.default_rng(0))
    square = torch.from_numpy(pictures(story, 160))
    frames = square[:, 160 - height :, :width].contiguous()
    parts = [{"type": "video"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    metadata = VideoMetadata(total_num_frames=6, fps=3.0, duration=2.0, frames_indices=[*range(6)])
    inputs = processor(
        text=prompt,
        videos=[frames.permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    grid = (height // 16, width // 16)
    assert inputs.video_grid_thw.tolist() == [[3, *grid]]
    with torch.inference_mode():
        served = model(**inputs).logits[0, -1]

    lesson = new_teacher(run).written(torch.zeros(1, 6, dtype=torch.int64), [[question]])
    with torch.inference_mode():
        features = encode_pairs(tower, frames.view(3, 2, height, width, 3))
        times = timestamps(3, 3.0)
        logits = answers(run.chat, tower, student, lesson, features, times, grid)[0]
    first = int((lesson.label_BML[0, 0] != IGNORED).nonzero()[0])
    # Weights are written in bfloat16, and training computes in it.
    torch.testing.assert_close(served, logits[first], atol=0.25, rtol=0.1)
    assert served.std() > 1


def test_a_cut_inside_a_pair_is_seen_as_it_is(
    trained: tuple[Run, Path, Tower, Student],
) -> None:
    """Features of a lesson, against those of its frames one pair at a time."""
    run, _, tower, _ = trained
    videos = Videos(run, tower, 9)
    seen = videos._drawn[0][MAIN]
    cuts = 0
    for number in range(8):
        rng = np.random.default_rng(number)
        lesson, features = videos.lesson(MAIN, 2, 10, 4, rng)
        for pair, feature in zip(lesson.frame_BT.reshape(-1, 2), features, strict=True):
            first, second = pair.tolist()
            cut = first // MOMENTS != second // MOMENTS
            cuts += cut
            if not cut:  # the bank's pairs follow each other
                first, second = first // 2 * 2, first // 2 * 2 + 1
            frames = torch.stack([seen.pixels[first], seen.pixels[second]])[None]
            torch.testing.assert_close(feature, encode_pairs(tower, frames)[0], atol=0.1, rtol=0.1)
    assert cuts


def test_training_begins_with_the_demos_tokens(trained: tuple[Run, Path, Tower, Student]) -> None:
    """Fails if weights of the tower or the merger are taken over wrongly."""
    run, demo = trained[0], load_demo(MODEL_DIR)
    tower, _ = command.started(run, demo)
    story = draw_story((2,), 8, "train", events=1)
    frames = torch.from_numpy(pictures(story, 128))
    with torch.inference_mode():
        ours = tower.tokens(encode_pairs(tower, frames.view(4, 2, 128, 128, 3)).float())
    theirs = demo_tokens(demo_features(demo, frames), MAIN).view(4, 2, *ours.shape[1:]).mean(1)
    assert (ours - theirs).square().mean() < 0.1 * theirs.var()


def test_the_kept_model_has_the_layout_that_training_writes(
    trained: tuple[Run, Path, Tower, Student],
) -> None:
    """Fails if sizes, tokenizer or templates change without the model that benchmarks use."""
    written, kept = trained[1], ROOT / "benchmarks" / "models" / "qwen3_vl_eventqa"
    weights = "model.safetensors"
    names = {path.name for path in written.iterdir()}
    assert names == {path.name for path in kept.iterdir()} - {"README.md", "metok.yaml"}
    for name in names - {weights}:
        assert (written / name).read_bytes() == (kept / name).read_bytes(), name
    ours, theirs = load_file(written / weights), load_file(kept / weights)
    assert {name: x.shape for name, x in ours.items()} == {
        name: x.shape for name, x in theirs.items()
    }
    assert (kept / weights).stat().st_size < 8_000_000


def new_teacher(run: Run) -> Any:
    """A teacher that only writes lessons."""
    _, truth = draw_bank("train", 8, MOMENTS, 16, 8, 1)
    return Teacher(truth, MOMENTS, run.chat, ASKED)
