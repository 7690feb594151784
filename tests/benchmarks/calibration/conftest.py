"""A tiny random model and its videos for the calibration tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from metok_vllm.benchmarks.calibration.measure import Sample, take_samples
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.prompts import find_questions
from metok_vllm.benchmarks.calibration.run import Calibration, calibrate
from metok_vllm.config import METokConfig
from tests.benchmarks.calibration.checkpoints import SIZES, write_videos
from tests.reference.staged_checkpoint import write_checkpoint

FRAMES, TOKENS = 8, 4


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "model"
    write_checkpoint(folder, SIZES, seed=2)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("calibration") / "videos")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> CalibratedModel:
    return CalibratedModel.load(str(checkpoint), METokConfig())


@pytest.fixture(scope="session")
def samples(model: CalibratedModel, videos: Path) -> Sequence[Sample]:
    questions = find_questions(videos, None, 2, 1, FRAMES)
    return take_samples(model, questions, TOKENS, lambda _: None)


@pytest.fixture(scope="session")
def found(model: CalibratedModel, videos: Path) -> Calibration:
    """A calibration on one video with another held out. No setting is within the least budget."""
    return calibrate(
        model,
        find_questions(videos, None, 2, 1, FRAMES),
        {"quality": 0.0, "balanced": 10.0, "max": 20.0},
        TOKENS,
        lambda _: None,
        keep_ratios=(0.6,),
        decode_keeps=(0.0, 0.25),
        served="balanced",
    )
