"""`metok inspect` on checkpoints of Qwen2.5-VL and Qwen3-VL: temporal patches, times, features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from metok_vllm.cli import main
from metok_vllm.config import METokConfig
from metok_vllm.demo import ALIGNMENT_DIR, SAMPLE_VIDEO
from metok_vllm.errors import ConfigError
from metok_vllm.plan.families import patch_times, video_layout
from metok_vllm.server.inspect.loading import load_encoder
from metok_vllm.video import read_video
from tests.reference.qwen_vl_checkpoint import write_checkpoint
from tests.reference.qwen_vl_config import QWEN_VL


@pytest.fixture(scope="module", params=list(QWEN_VL))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_checkpoint(folder, request.param)
    return folder


def some_frames(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 96, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("chunk_frames", [1, 5])
def test_features_are_those_of_the_whole_model(checkpoint: Path, chunk_frames: int) -> None:
    """Five frames are three temporal patches; chunks are cut between patches."""
    frames_THWC = some_frames(5)
    found = load_encoder(str(checkpoint)).encode(frames_THWC, "", chunk_frames)

    whole = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint).video_processor
    frames = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    inputs = processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        (features_ND,) = whole.get_video_features(**inputs).pooler_output
    ((patches, rows, columns),) = inputs["video_grid_thw"].tolist()
    assert patches == found.video.frames == 3
    assert found.video.grid == (rows // 2, columns // 2)
    by_patch = features_ND.view(patches, rows * columns // 4, -1).mean(1)
    torch.testing.assert_close(found.feature_TD, by_patch, atol=1e-5, rtol=1e-5)


def test_the_picture_is_the_frame_that_was_cut_into_patches(checkpoint: Path) -> None:
    """Alignment towers see the first frame of each pair."""
    encoder = load_encoder(str(checkpoint))
    side = encoder.model.config.vision_config.patch_size * 2
    frames_THWC = some_frames(4)[:, : 2 * side, : 2 * side]
    video, (pixels,) = encoder.prepare(frames_THWC, 4, None)
    shown = encoder.picture(pixels, video) * torch.tensor(encoder.pixels.std).view(1, 3, 1, 1)
    shown += torch.tensor(encoder.pixels.mean).view(1, 3, 1, 1)
    wanted = torch.tensor(frames_THWC[::2]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(shown, wanted, atol=1e-4, rtol=0)


def test_the_sample_video(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(SAMPLE_VIDEO), "A star?", "--model", str(checkpoint)]
    assert main([*arguments, "--frames", "9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["frames"]) == 5
    sampled = [frame["timestamp_s"] for frame in report["frames"]]
    assert sampled == sorted(sampled)
    encoder = load_encoder(str(checkpoint))
    family = encoder.model.config.model_type
    served = METokConfig.load(environ={}, family=family)
    height, width = read_video(SAMPLE_VIDEO.read_bytes(), 9).frames_THWC.shape[1:3]
    video = video_layout(encoder.model.config, 9, (height, width), [0.1] * 9)
    # A second digit before the point is one more token.
    longer = sum(seconds >= 10 for seconds in sampled) if video.separators else 0
    assert report["visual_tokens"] == {
        "dense": video.dense_tokens() + longer,
        "encoded": video.encoded_tokens(served) + longer,
    }
    assert report["fallback"] == "no_towers"


def test_a_question_ranks_patches_and_shared_towers_are_refused(checkpoint: Path) -> None:
    encoder = load_encoder(str(checkpoint))
    encoder.add_towers(str(ALIGNMENT_DIR))
    relevance_T = encoder.encode(some_frames(4), "a red ball", 4).relevance_T
    assert relevance_T is not None
    assert len(relevance_T) == 2
    with pytest.raises(ConfigError, match="use 'separate'"):
        encoder.add_towers(str(ALIGNMENT_DIR), shared=True)


def test_times_of_temporal_patches() -> None:
    assert patch_times([0.0, 1.0, 2.0, 4.0, 6.0], 2) == [0.5, 3.0, 6.0]
    assert patch_times([1.0, 2.0], 1) == [1.0, 2.0]
