"""Qwen2.5-VL, Qwen3-VL and its mixture of experts in the engine answer as the naive decoder.

All requests of a family are in flight together: text, images, dense videos and videos with METok,
of several sizes and frame rates. Without METok, answers are those of vLLM's own class and, but for
Qwen2.5-VL's videos, of Hugging Face's `generate`.

Shape suffixes: T frames, P features of a frame, M tokens of a video, W encoder channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from tests.engine.checkpoints import Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.mrope_expected import (
    POSITION_CHANNELS,
    DecoderInput,
    decoder_input,
    frame_of_video,
    medium_of,
    rows_of_video,
)
from tests.engine.rendered import Rendered, render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import config_of, without_ties
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, Picture, make_prompt
from tests.reference import stage1
from tests.reference.decoder import Generated, generate
from tests.reference.mrope import IMAGE, VIDEO, Positions
from tests.reference.qwen_vl_checkpoint import load_model
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = pytest.mark.slow

# Deepstack's three levels are added before the first boundary.
BOUNDARIES, NEW_TOKENS = (3, 5, 6), 12
TOLERANCE = 1e-4

LONG, SHORT, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Clip(9, (2, 3, 1, 2)), Picture(3, (1,))
# Two thirds of a second a temporal patch, the last of which has one frame; high and narrow.
FRACTION = Clip(7, (3, 2, 4), (64, 128), 3.0, odd=True)
HIGH = Clip(4, (4, 3), (160, 64), 0.7)
PROMPTS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "text": ((30,), {}),
    "image": ((6, PICTURE, 20), {}),
    "dense": ((7, SHORT, 20), OFF),
    "stage 1": ((7, LONG, 20), {"stages": [1]}),
    "selected": ((7, HIGH, 20), {"stages": [1], "reduce": "select"}),
    "stage 2": ((7, LONG, 20), {"stages": [2], "keep_ratio": 0.3}),
    "stage 3": ((7, LONG, 20), {"stages": [3], "decode_keep": 0.25}),
    "all stages": ((7, LONG, 20), {"decode_keep": 0.25}),
    "two videos": ((7, LONG, 9, HIGH, 15), {}),
    "fractional times": ((7, FRACTION, 15), {}),
    "image, video": ((4, PICTURE, 6, FRACTION, 20), {}),
    "video, image": ((4, FRACTION, 6, PICTURE, 20), {}),
    "video last": ((12, SHORT), {}),
    "one frame": ((4, Clip(1, (1,)), 9), {}),
}


@dataclass
class Family:
    """An engine, and its prompts with the answers that they must get."""

    checkpoint: Checkpoint
    engine: StagedEngine
    cases: dict[str, tuple[Any, Generated]]

    def given(self, name: str) -> tuple[Rendered, Rendered, DecoderInput]:
        """A prompt as it is, with METok off, and what the naive decoder is given of it."""
        prompt = self.cases[name][0]
        rendered = render(self.engine, prompt)
        dense = render(self.engine, {**prompt, "mm_processor_kwargs": {"metok": OFF}})
        config = config_of(self.engine, prompt)
        of_reference = (self.checkpoint.language, self.checkpoint.name)
        return rendered, dense, decoder_input(*of_reference, config, rendered, dense)


@pytest.fixture(
    scope="module",
    params=[QWEN2_5_VL, QWEN3_VL, pytest.param(QWEN3_VL_MOE, marks=pytest.mark.thorough)],
)
def family(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Family:
    checkpoint = checkpoint_of(request.param)
    engine = StagedEngine(engines, checkpoint.folder, checkpoint.language, BOUNDARIES)
    cases = {
        name: without_ties(engine, parts, options, NEW_TOKENS)
        for name, (parts, options) in PROMPTS.items()
    }
    return Family(checkpoint, engine, cases)


def test_answers_equal_the_reference(family: Family) -> None:
    answers = family.engine.answer([prompt for prompt, _ in family.cases.values()], NEW_TOKENS)
    for (name, (_, expected)), answer in zip(family.cases.items(), answers, strict=True):
        assert answer is not None
        assert answer.error(expected) <= TOLERANCE, name


@pytest.mark.parametrize("name", ["stage 1", "stage 2", "selected", "fractional times"])
def test_encoded_rows_are_dense_ones_reduced_and_their_positions(family: Family, name: str) -> None:
    rendered, dense, given = family.given(name)
    config = config_of(family.engine, family.cases[name][0])
    (placed,), (kept,), (decision,) = dense.media, given.kept, rendered.decisions
    medium = medium_of(family.checkpoint.name, placed)
    frame = frame_of_video(dense.ids, placed, medium)
    x_TPW = rows_of_video(dense, placed, medium)
    width = x_TPW.shape[2]
    if config.reduce == "select":
        whole_MW = torch.zeros(placed.length, width)
        whole_MW[[row - placed.start for row in placed.rows]] = x_TPW.flatten(0, 1)
        wanted_MW = whole_MW[kept.tokens]
    else:
        wanted_MW = stage1.pack(
            x_TPW,
            decision["class_of_frame"],
            decision["event_of_frame"],
            torch.zeros(width),
            frame.grid,
            frame.strides(config) if 1 in config.stages else (1, 1, 1),
            frame.mode,
            frame.newlines,
            before=[torch.zeros(count, width) for count in frame.before],
            after=[torch.zeros(count, width) for count in frame.after],
        ).tokens_ND
    (rows_MW,) = rendered.visual.values()
    visual = [m for m in range(len(rows_MW)) if m not in given.videos[0].separators]
    assert rows_MW.shape == (len(wanted_MW), width + POSITION_CHANNELS)
    torch.testing.assert_close(rows_MW[visual, :width], wanted_MW[visual], atol=1e-5, rtol=1e-5)

    # Text stands in front of every video: the position after it is the video's first.
    first = given.rotary.places[placed.start - 1][0] + 1
    places = given.rotary.places[placed.start : placed.start + len(rows_MW)]
    high_M3, low_M3 = rows_MW[:, width:].split(3, dim=1)
    assert (256 * high_M3 + low_M3).tolist() == [[axis - first for axis in at] for at in places]


def test_wrong_positions_show(family: Family) -> None:
    """The checkpoint's answers depend on what the tests are about."""
    _, _, given = family.given("all stages")
    right, (video,) = given.rotary, given.videos
    start, end = video.start, video.end
    first = right.places[start - 1][0] + 1

    def moved(*by: int) -> Positions:
        inside = [(t + by[0], y + by[1], x + by[2]) for t, y, x in right.places[start:end]]
        return Positions([*right.places[:start], *inside, *right.places[end:]], right.delta)

    still = [(first, first, first)] * (end - start)
    wrong = {
        "counted": Positions.counted(len(right.places)),
        "without offsets": Positions(
            [*right.places[:start], *still, *right.places[end:]], right.delta
        ),
        "one frame later": moved(1, 0, 0),
        "one row lower": moved(0, 1, 0),
        "one column aside": moved(0, 0, 1),
        "later in decoding": Positions(right.places, right.delta + 1),
    }
    answers = {name: answer(family, given, places) for name, places in wrong.items()}
    expected = answer(family, given, right)
    for name, found in answers.items():
        assert float((found - expected).abs().max()) > 100 * TOLERANCE, name


def answer(family: Family, given: DecoderInput, rotary: Positions) -> Tensor:
    """Log-probabilities of the first two tokens."""
    return generate(
        family.checkpoint.language,
        given.embeds_ND,
        given.videos,
        BOUNDARIES,
        2,
        rotary=rotary,
        deepstack=given.deepstack,
    ).logprobs_SV


PLAIN: dict[str, Parts] = {
    "text": (30,),
    "image": (6, PICTURE, 20),
    "video": (7, FRACTION, 20),
    "two videos": (3, SHORT, 4, HIGH, 9),
    "image, video": (4, PICTURE, 6, SHORT, 20),
}


@pytest.mark.thorough
def test_without_metok_answers_are_those_of_vllm_and_hugging_face(
    family: Family, engines: EnginePool
) -> None:
    checkpoint = family.checkpoint
    stock = StagedEngine(engines, checkpoint.folder, checkpoint.language, None)
    model = load_model(checkpoint.folder)
    for name, parts in PLAIN.items():
        expected = stock.answer_alone(make_prompt(parts, media=QWEN), NEW_TOKENS)
        prompt = make_prompt(parts, OFF, media=QWEN)
        found = family.engine.answer_alone(prompt, NEW_TOKENS)
        assert found.error(expected) <= 1e-5, name
        # Transformers 5.19 has other positions after a video of Qwen2.5-VL.
        if checkpoint.name != QWEN2_5_VL or not any("video" in word for word in name.split()):
            ids = render(family.engine, prompt).ids
            wanted_SV = answer_of_hugging_face(model, checkpoint.folder, ids, prompt)
            error = float((found.logprobs_SV - wanted_SV).abs().max())
            assert error <= TOLERANCE, name


@torch.no_grad()
def answer_of_hugging_face(model: Any, folder: Path, ids: list[int], prompt: Any) -> Tensor:
    """Log-probabilities [S, V] of `generate` on the engine's token ids and the same media."""
    processor = AutoProcessor.from_pretrained(folder)
    data = prompt.get("multi_modal_data", {})
    options: dict[str, Any] = {}
    if images := data.get("image"):
        options |= processor.image_processor(images, return_tensors="pt")
    for frames, metadata in data.get("video", []):
        known = {name: value for name, value in metadata.items() if name != "do_sample_frames"}
        video = processor.video_processor(
            [frames],
            video_metadata=[VideoMetadata(**known)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        for field in ("pixel_values_videos", "video_grid_thw"):
            before = [options[field]] if field in options else []
            options[field] = torch.cat([*before, video[field]])
    kinds = [(token == IMAGE) + 2 * (token == VIDEO) for token in ids]
    output = model.generate(
        input_ids=torch.tensor([ids]),
        mm_token_type_ids=torch.tensor([kinds]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(output.logits)[:, 0].log_softmax(-1)
