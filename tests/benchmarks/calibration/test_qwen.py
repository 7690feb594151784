"""Calibration's passes on Qwen2.5-VL and Qwen3-VL: Hugging Face's answer, the naive METok's answer.

Every row has three rotary positions; Qwen3-VL has text between frames, and deepstack.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from metok_vllm import cli
from metok_vllm.benchmarks.calibration.measure import Meter, Sample, take_samples
from metok_vllm.benchmarks.calibration.model import KEY, CalibratedModel
from metok_vllm.benchmarks.calibration.passes import run_dense, run_pruned
from metok_vllm.benchmarks.calibration.setting import Setting, plan_of
from metok_vllm.benchmarks.questions.prompts import QUESTION, VideoQuestion
from metok_vllm.config import METokConfig
from metok_vllm.engine.model_checks import check_hf_config
from metok_vllm.engine.video_loader import MetokVideoLoader
from metok_vllm.errors import ConfigError
from metok_vllm.video import VideoFrames, read_video
from tests.benchmarks.calibration.qwen_expected import DensePrompt
from tests.models import qwen_processors
from tests.reference import qwen_resize
from tests.reference.decoder import generate
from tests.reference.qwen3_5 import QWEN3_5
from tests.reference.qwen_vl_checkpoint import load_model, write_checkpoint
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE
from tests.reference.staged_checkpoint import language_model
from tests.video.clips import encode

# An odd number of frames: the last temporal patch repeats one.
FRAMES, TOKENS, ASKED = 15, 4, "What happens in the video?"
BOUNDARIES, LAYERS = (3, 5, 6), 8
KEEP = 0.6


@dataclass
class Family:
    """A tiny checkpoint in both programs, and one prompt."""

    folder: Path
    model: CalibratedModel
    plain: Any
    frames: VideoFrames
    data: bytes
    sample: Sample
    dense: DensePrompt


@pytest.fixture(scope="module", params=[QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    write_checkpoint(folder, request.param)
    data = encode(num_frames=90, size=(160, 96))
    path = folder.parent / "video.mp4"
    path.write_bytes(data)
    config = METokConfig.load({"num_events": 3}, environ={}, family=request.param)
    model = CalibratedModel.load(str(folder), config)
    plain = load_model(folder)
    frames = read_video(data, FRAMES)
    question = VideoQuestion(path, path.name, ASKED, QUESTION, None, FRAMES)
    (sample,) = take_samples(model, [question], TOKENS, lambda _: None)
    dense = DensePrompt(plain, model.processor, frames, ASKED)
    return Family(folder, model, plain, frames, data, sample, dense)


def test_the_dense_answer_is_hugging_faces(family: Family) -> None:
    """Pixels, times and chat template in, log-probabilities out."""
    expected_SV = family.dense.logprobs(family.sample.answer)
    torch.testing.assert_close(family.sample.logprobs_SV, expected_SV, atol=1e-4, rtol=0)
    assert family.sample.answer == expected_SV.argmax(-1).tolist()


def test_the_prompt_is_the_servers(family: Family, tmp_path: Path) -> None:
    """Grid, ids between frames and number of positions are those of the processor in the engine."""
    served = qwen_processors.make(tmp_path / "model", family.plain.config.model_type)
    prompt = {
        "prompt_token_ids": family.model._ids(ASKED),
        "multi_modal_data": {
            "video": [MetokVideoLoader.load_bytes(family.data, num_frames=FRAMES)]
        },
        "mm_processor_kwargs": {"metok": {"stages": [2, 3]}},
    }
    applied = served.apply(prompt)
    (layout,) = served.processor.layouts.entries.values()
    found = family.sample.dense
    assert layout == found.video
    (place,) = applied["mm_placeholders"]["video"]
    assert (place.offset, place.length) == (found.start, found.tokens)
    assert len(applied["prompt_token_ids"]) == len(found)


@pytest.mark.parametrize("stages", [(2, 3), (1, 2, 3)])
@pytest.mark.parametrize("decode_keep", [0.0, 0.25])
def test_pruning_equals_the_naive_reference(
    family: Family, stages: tuple[int, ...], decode_keep: float
) -> None:
    """The reference makes positions, pooled rows and deepstack of the dense prompt by itself."""
    model = family.model
    with torch.inference_mode():
        prompt = model.prompt(family.frames, ASKED, stages)
    config = model.config.updated({"stages": stages, "keep_ratio": KEEP})
    given = family.dense.given_to_decoder(config, model.encoder.events.report(KEY))
    expected = generate(
        language_model(family.plain),
        given.embeds_ND,
        [given.video],
        BOUNDARIES,
        TOKENS,
        decode_keep=decode_keep,
        rotary=given.rotary,
        deepstack=given.deepstack,
    )
    assert expected.margin > 1e-7, "a smaller margin could flip a decision"
    setting = Setting(BOUNDARIES, KEEP, decode_keep)
    with torch.no_grad():
        dense = run_dense(model.decoder, prompt, expected.tokens[:-1])
        plans = [plan_of(setting, prompt, model.config)]
        (got_SV,) = run_pruned(model.decoder, prompt, dense, BOUNDARIES, plans)
    torch.testing.assert_close(got_SV, expected.logprobs_SV, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_resized_frames_are_the_references(family: Family) -> None:
    """With `reduce: resize`, thumbnails find the events and the tower sees smaller pictures."""
    config = family.model.config.updated({"reduce": "resize"})
    model = replace(family.model, config=config)
    prompt = model.prompt(family.frames, ASKED, (1, 2, 3))
    frames, processor = family.dense.medium.frames, family.model.processor.video_processor
    patches = family.dense.inputs["pixel_values_videos"].unflatten(0, (frames, -1))
    visual, vision = family.plain.model.visual, family.plain.config.vision_config
    text = torch.zeros(16, (1 + len(prompt.deepstack_LND)) * prompt.embeds_ND.shape[1])
    expected = qwen_resize.encode(
        partial(qwen_resize.tower, visual),
        list(patches),
        prompt.video.grid,
        qwen_resize.Pixels(vision.patch_size, processor.image_mean, processor.image_std),
        config,
        [text[: len(ids)] for ids in prompt.video.before],
        [text[: len(ids)] for ids in prompt.video.after],
    ).packed
    visual_N = [n for n in range(prompt.tokens) if n not in expected.separators]
    rows_NW = torch.cat([prompt.embeds_ND, *prompt.deepstack_LND], dim=1)[prompt.start :]
    torch.testing.assert_close(
        rows_NW[visual_N], expected.tokens_ND[visual_N], atol=1e-4, rtol=1e-4
    )


def test_nothing_dropped_is_no_divergence(family: Family) -> None:
    """Also from before layer 0 and among the layers that deepstack joins."""
    starts = [(0, 0, 0), (1, 2, 4), (LAYERS, LAYERS, LAYERS)]
    meter = Meter(family.model, [family.sample], lambda _: None)
    same = meter.measure([Setting(at, drops=()) for at in starts], "test")
    assert max(found.worst for found in same) < 1e-8
    dropped, unread = meter.measure(
        [Setting((0, 0, 0), drops=(3,)), Setting((0, LAYERS, LAYERS), decode_keep=0.0, drops=())],
        "test",
    )
    assert dropped.first > 1e-4
    assert unread.first < 1e-8 < 1e-4 < unread.following


@pytest.mark.slow
def test_a_calibration_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No boundary comes before the layers that deepstack joins; key frames are shares."""
    write_checkpoint(tmp_path / "model", QWEN3_VL)
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.mp4").write_bytes(encode(num_frames=32 + 8 * number, size=(96, 64)))
    out, found = tmp_path / "metok.yaml", tmp_path / "found.json"
    options = (
        *("--videos", str(folder), "--out", str(out), "--json", str(found)),
        *("--frames", "8", "--tokens", "3", "--questions-per-video", "1"),
    )
    words = ["calibrate", str(tmp_path / "model"), *options, "--divergence", "5"]
    assert cli.main(words) == 0, capsys.readouterr().err
    served = METokConfig.load(config_file=out, environ={}, family=QWEN3_VL)
    check_hf_config(served, AutoConfig.from_pretrained(tmp_path / "model"))
    assert served.pruning_layers is not None
    assert served.pruning_layers[0] >= 3
    assert served.key_frames_per_event == 0.25
    drop = json.loads(found.read_text())["curves"]["drop"]
    assert [point["layer"] for point in drop] == list(range(LAYERS))


def test_linear_attention_has_nothing_to_calibrate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": QWEN3_5}))
    with pytest.raises(ConfigError, match="linear-attention layers hold a state, not tokens"):
        CalibratedModel.load(str(tmp_path), METokConfig())
