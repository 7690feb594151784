"""The paper's own counts compared with fixed ones, on the demo model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from metok_vllm.benchmarks.calibration.model import KEY, CalibratedModel
from metok_vllm.benchmarks.eventqa.clips import write_folder
from metok_vllm.benchmarks.quality import budget_effect
from metok_vllm.benchmarks.questions.prompts import read_folder
from metok_vllm.config import METokConfig
from metok_vllm.demo import ALIGNMENT_DIR, CONFIG_FILE, MODEL_DIR, SAMPLE_VIDEO
from metok_vllm.pruning import TokenEvents
from metok_vllm.video import read_video

FRAMES = 16
QUESTION = "What is in the black scene?"


@pytest.fixture(scope="module")
def model() -> CalibratedModel:
    config = METokConfig.load(config_file=CONFIG_FILE)
    config = config.updated({"alignment_model": str(ALIGNMENT_DIR)})
    return CalibratedModel.load(str(MODEL_DIR), config)


def test_content_decides_how_many_tokens_an_unbudgeted_prompt_has(model: CalibratedModel) -> None:
    frames = read_video(SAMPLE_VIDEO.read_bytes(), FRAMES)
    fixed = model.prompt(frames, QUESTION, (1, 2, 3))
    assert fixed.tokens == fixed.video.encoded_tokens(model.config)
    free = budget_effect.unbudgeted(model, frames, QUESTION)
    classes = model.encoder.events.entries[KEY].events.natural_T.tolist()
    by_class = [fixed.video.frame_features(stride) for stride in model.config.strides]
    assert free.tokens == sum(by_class[c] for c in classes) + model.config.num_events
    assert len(free) - free.tokens == len(fixed) - fixed.tokens


def test_where_the_counts_agree_the_prompts_do(model: CalibratedModel) -> None:
    frames = read_video(SAMPLE_VIDEO.read_bytes(), FRAMES)
    every = {"key_event_ratio": 1.0, "key_frames_per_event": 1.0}  # all frames at the finest
    fine = replace(model, config=model.config.updated(every))
    fixed = fine.prompt(frames, QUESTION, (1, 2, 3))
    free = budget_effect.unbudgeted(fine, frames, QUESTION)
    torch.testing.assert_close(free.embeds_ND, fixed.embeds_ND)
    assert torch.equal(free.events.event_N, fixed.events.event_N)
    assert budget_effect.true_key_share(free.events) == 1


def test_the_share_of_key_events_is_counted_in_tokens() -> None:
    events = TokenEvents(
        torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, False]), torch.tensor([0.5, 0.1])
    )
    assert budget_effect.true_key_share(events) == Fraction(3, 5)


def test_the_program_compares_both_rules_on_the_same_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, 2, FRAMES, "test", 5)
    options = ["--model", str(MODEL_DIR), "--metok-config", str(CONFIG_FILE)]
    options += ["--folder", str(tmp_path), "--frames", str(FRAMES), "--limit", "12"]
    monkeypatch.setattr(sys, "argv", ["budget_effect", *options, "--out", str(tmp_path / "r.json")])
    budget_effect.main()
    record = json.loads((tmp_path / "r.json").read_text())
    assert json.loads(capsys.readouterr().out) == record
    fixed, free = record["rows"]
    assert (fixed["rule"], free["rule"]) == budget_effect.RULES
    assert fixed["questions"] == free["questions"] == len(read_folder(tmp_path, FRAMES, 12)) == 12
    assert fixed["tokens_least"] == fixed["tokens_most"]
    assert free["tokens_least"] < free["tokens_most"]
    assert fixed["accuracy"]["mean"] > 0.5
    moved = free["accuracy"]["mean"] - fixed["accuracy"]["mean"]
    assert free["difference"]["mean"] == pytest.approx(moved)
