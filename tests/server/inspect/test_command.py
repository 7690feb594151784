"""`metok inspect` end to end on the sample video with the demo checkpoint, without vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metok_vllm.cli import main
from metok_vllm.config import METokConfig
from metok_vllm.demo import (
    ALIGNMENT_DIR,
    CONFIG_FILE,
    MODEL_DIR,
    SAMPLE_QUESTION,
    SAMPLE_VIDEO,
    SCENES,
)
from metok_vllm.server.inspect.loading import load_encoder
from tests.layouts import square


def test_sample_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "events.png"
    arguments = ["inspect", str(SAMPLE_VIDEO), SAMPLE_QUESTION, "-o", str(picture), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)

    frames, events = report["frames"], report["events"]
    assert len(frames) == 32
    assert len(events) == 8
    assert all(event["key"] for event in events)
    served = METokConfig.load(config_file=CONFIG_FILE)
    grid = 8
    assert report["visual_tokens"] == {
        "dense": square(32, grid).dense_tokens(),
        "encoded": square(32, grid).encoded_tokens(served),
    }
    assert report["query_source"] == "user_turn"
    assert report["fallback"] is None
    # Every scene starts with the first frame of an event.
    step = frames[1]["timestamp_s"]
    for scene in SCENES:
        assert min(abs(event["start_s"] - scene.start_s) for event in events) <= step
    # The question is about the shortest scene.
    best = max(events, key=lambda event: event["relevance"])
    assert (best["start_s"], best["key"]) == (pytest.approx(18.0, abs=step), True)
    with Image.open(picture) as image:
        assert image.width == 1600
        assert image.height > 600


def test_a_configuration_file_is_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events, key events and tokens are those of the file, as it is served."""
    file = tmp_path / "metok.yaml"
    file.write_text("num_events: 5\nkey_event_ratio: 0.4\nkey_frames_per_event: 2\n")
    arguments = ["inspect", str(SAMPLE_VIDEO), SAMPLE_QUESTION, "--frames", "16", "--json"]
    assert main([*arguments, "--metok-config", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(report["events"]), sum(event["key"] for event in report["events"])] == [5, 2]
    config = METokConfig.load(config_file=file)
    assert report["visual_tokens"]["encoded"] == square(16, 8).encoded_tokens(config)
    # Flags override the file.
    assert main([*arguments, "--metok-config", str(file), "--num-events", "3"]) == 0
    assert len(json.loads(capsys.readouterr().out)["events"]) == 3
    assert main([*arguments, "--metok-config", str(tmp_path / "none.yaml")]) == 2


def test_natural_rule_and_text_output(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(SAMPLE_VIDEO), "A star?", "--frames", "8", "--rule", "natural"]
    assert main([*arguments, "--alignment-mode", "none"]) == 0
    shown = capsys.readouterr().out
    assert "8 frames: dense 129 to" in shown
    assert "natural rule" in shown
    assert "No alignment towers" in shown


@pytest.mark.parametrize(
    ("question", "mode", "source", "fallback", "words"),
    [
        ("  ", "separate", "none", "no_query", "No question"),
        ("A star?", "none", "user_turn", "no_towers", "No alignment towers"),
        ("", "none", "none", "no_towers", "No alignment towers"),
    ],
)
def test_ranking_without_the_question_is_reported(
    capsys: pytest.CaptureFixture[str],
    question: str,
    mode: str,
    source: str,
    fallback: str,
    words: str,
) -> None:
    arguments = ["inspect", str(SAMPLE_VIDEO), question, "--frames", "4", "--alignment-mode", mode]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["query_source"], report["fallback"]) == (source, fallback)
    assert main(arguments) == 0
    assert f"{words}: relevance is" in capsys.readouterr().out


def test_the_question_decides_the_relevance() -> None:
    encoder = load_encoder(str(MODEL_DIR))
    encoder.add_towers(str(ALIGNMENT_DIR))
    frames_THWC = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    first = encoder.encode(frames_THWC, "a red ball", chunk_frames=2)
    second = encoder.encode(frames_THWC, "a green train", chunk_frames=2)
    assert first.relevance_T is not None
    assert second.relevance_T is not None
    assert not torch.allclose(first.relevance_T, second.relevance_T)
    torch.testing.assert_close(first.feature_TD, second.feature_TD)
    assert encoder.encode(frames_THWC, " ", chunk_frames=2).relevance_T is None


@pytest.mark.parametrize("chunk_frames", [1, 2, 5])
def test_features_are_those_of_the_whole_model(chunk_frames: int) -> None:
    """The checkpoint is loaded without its decoder; the seeing half must be untouched by that."""
    from transformers import LlavaOnevisionForConditionalGeneration

    encoder = load_encoder(str(MODEL_DIR))
    frames_THWC = np.random.default_rng(1).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    features = encoder.encode(frames_THWC, "", chunk_frames)

    whole = LlavaOnevisionForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32)
    whole.eval()
    assert whole.config.text_config.num_hidden_layers > 0
    frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames_THWC]
    pixels = encoder.processor(videos=[torch.stack(frames)], return_tensors="pt")
    for t, pixels_CHW in enumerate(pixels["pixel_values_videos"][0]):
        with torch.no_grad():
            tower = whole.model.vision_tower(pixels_CHW[None], output_hidden_states=True)
            layer = whole.config.vision_feature_layer
            patches_PD = whole.model.multi_modal_projector(tower.hidden_states[layer])[0]
        torch.testing.assert_close(features.feature_TD[t], patches_PD.mean(0), atol=1e-5, rtol=1e-5)
