"""LongVA and LLaVA-Video in the engine equal a plain PyTorch reading of the published architecture.

Text, an image, a dense video and a video with METok are in flight together. Visual rows come from
the reading as well: towers, projector, pooling, newlines, tiles and METok's stage 1.

Shape suffixes: T frames, C channels, H height, W width, M visual tokens, D features.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError

from metok_vllm.alignment import AlignmentTowers
from metok_vllm.config import METokConfig
from metok_vllm.demo import SAMPLE_VIDEO
from tests.engine import engines
from tests.engine.checkpoints import Checkpoint
from tests.engine.engines import EnginePool
from tests.engine.rendered import render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import first_without_ties, frame_of
from tests.engine.staged_prompts import OFF, Clip, Parts, Picture, make_prompt, planned_video
from tests.reference import llava_qwen, stage1
from tests.reference.checkpoints import save_clip
from tests.reference.decoder import Generated, Video, generate
from tests.reference.staged_checkpoint import embed_prompt

pytestmark = pytest.mark.slow

BOUNDARIES, NEW_TOKENS = (2, 4, 6), 12
CLIP, PICTURE = Clip(5, (3, 6, 2, 5, 4)), Picture(3, (1,))
PROMPTS: dict[str, tuple[Parts, dict[str, Any]]] = {
    "text": ((40,), {}),
    "image": ((6, PICTURE, 30), {}),
    "dense": ((7, CLIP, 20), OFF),
    "METok": ((7, CLIP, 20), {}),
    "METok beside an image": ((4, PICTURE, 3, CLIP, 20), {}),
}


@dataclass(frozen=True)
class Setting:
    """An engine on a checkpoint, and the reading of the same files."""

    engine: StagedEngine
    published: llava_qwen.PublishedModel


@pytest.fixture(
    scope="module",
    params=[
        "longva",
        "llava_video",
        pytest.param("llava_onevision_original", marks=pytest.mark.thorough),
    ],
)
def setting(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Setting:
    checkpoint = checkpoint_of(request.param)
    engine = StagedEngine(engines, checkpoint.folder, checkpoint.language, BOUNDARIES)
    return Setting(engine, llava_qwen.load(checkpoint.folder))


@dataclass(frozen=True)
class Read:
    """The reading's rows of a prompt's media [M, D] by their first position, and its videos."""

    ids: list[int]
    visual: dict[int, Tensor]
    videos: list[Video]


def read(setting: Setting, prompt: Any, config: METokConfig) -> Read:
    """Encode the media of a prompt as published, from the pixels that the engine is given."""
    inputs = engines.render(setting.engine.llm, prompt)
    ids = list(inputs["prompt_token_ids"])
    visual: dict[int, Tensor] = {}
    videos: list[Video] = []
    for modality, items in inputs.get("mm_kwargs", {}).items():
        for item, place in zip(items, inputs["mm_placeholders"][modality], strict=True):
            if modality == "image":
                height, width = item["image_sizes"].data.tolist()
                pixels = item["pixel_values"].data
                rows_MD = setting.published.image(pixels, height, width)
            elif not config.enabled:
                rows_MD = setting.published.video(item["pixel_values_videos"].data)
            else:
                pixels = item["pixel_values_videos"].data
                rows_MD, decision = encode(setting.published, pixels, config)
                frame = frame_of(setting.engine.model.config)
                tokens = len(rows_MD)
                videos.append(
                    planned_video(place.offset, decision, config, tokens, len(ids), frame)
                )
            assert len(rows_MD) == place.length
            visual[place.offset] = rows_MD
    return Read(ids, visual, videos)


@torch.no_grad()
def encode(
    published: llava_qwen.PublishedModel, pixels_TCHW: Tensor, config: METokConfig
) -> tuple[Tensor, dict[str, Any]]:
    """METok's stage 1 on a video, and what it decides, by the reference's rules alone."""
    patches = torch.stack([published.patches(frame) for frame in pixels_TCHW])
    means = patches.double().mean(1).tolist()
    event_of = stage1.event_of_frames(stage1.adjacent_cosines(means), config.num_events)
    relevance = stage1.fallback_relevance(means, event_of)
    ratio, per_event = config.key_event_ratio, config.key_frames_per_event
    natural = stage1.natural_classes(event_of, relevance, ratio, per_event)
    fine, medium, _ = stage1.budget(len(patches), config.num_events, ratio, per_event)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium)
    packed = stage1.pack(
        patches,
        classes,
        event_of,
        published.newline(),
        published.grid,
        config.strides,
        published.pooling,
        published.newlines,
        reduce=config.reduce,
    )
    key = stage1.key_events(event_of, relevance, ratio)
    decision = {
        "event_of_frame": event_of,
        "class_of_frame": classes,
        "relevance_of_frame": relevance,
        "event_relevance": stage1.event_relevances(event_of, relevance),
        "event_key": [event in key for event in range(max(event_of) + 1)],
    }
    return packed.tokens_ND, decision


def expected(setting: Setting, prompt: Any) -> Generated:
    options = prompt.get("mm_processor_kwargs", {}).get("metok", {})
    config: METokConfig = setting.engine.model.metok.for_request(options)
    found = read(setting, prompt, config)
    language = setting.published.language
    return generate(
        language,
        embed_prompt(language, found.ids, found.visual),
        found.videos,
        BOUNDARIES,
        NEW_TOKENS,
        set(config.stages) if found.videos else (),
        config.decode_keep,
    )


def test_answers_equal_the_published_architecture(setting: Setting) -> None:
    prompts = [
        first_without_ties(parts, options, lambda prompt: expected(setting, prompt))
        for parts, options in PROMPTS.values()
    ]
    answers = setting.engine.answer([prompt for prompt, _ in prompts], NEW_TOKENS)
    for name, answer, (_, wanted) in zip(PROMPTS, answers, prompts, strict=True):
        assert answer is not None
        assert answer.error(wanted) <= 2e-4, name


@pytest.mark.parametrize("name", ["image", "dense", "METok"])
def test_visual_rows_equal_the_published_architecture(setting: Setting, name: str) -> None:
    parts, options = PROMPTS[name]
    prompt, _ = first_without_ties(parts, options, lambda prompt: expected(setting, prompt))
    config = setting.engine.model.metok.for_request(options)
    wanted = read(setting, prompt, config).visual
    found = render(setting.engine, prompt).visual
    assert found.keys() == wanted.keys()
    for start, rows_MD in found.items():
        torch.testing.assert_close(rows_MD, wanted[start], atol=1e-4, rtol=1e-4)


def test_selected_tokens_too_or_a_refusal(setting: Setting) -> None:
    """LLaVA-Video's newlines need whole rows; the others answer as the reading says."""
    parts, options = (7, CLIP, 20), {"reduce": "select"}
    if setting.published.newlines == stage1.ROW:
        with pytest.raises(VLLMValidationError, match="a newline ends each row"):
            engines.render(setting.engine.llm, make_prompt(parts, options))
        return
    prompt, wanted = first_without_ties(parts, options, lambda prompt: expected(setting, prompt))
    config = setting.engine.model.metok.for_request(options)
    (found_MD,) = render(setting.engine, prompt).visual.values()
    (wanted_MD,) = read(setting, prompt, config).visual.values()
    torch.testing.assert_close(found_MD, wanted_MD, atol=1e-4, rtol=1e-4)
    assert setting.engine.answer_alone(prompt, NEW_TOKENS).error(wanted) <= 2e-4


def test_a_chat_is_the_published_conversation(setting: Setting) -> None:
    """`conv_qwen` with the video before the question, as in the published examples."""
    from vllm import SamplingParams

    video = "data:video/mp4;base64," + base64.b64encode(SAMPLE_VIDEO.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": video}},
        {"type": "text", "text": "What is it?"},
    ]
    llm = setting.engine.llm
    params = SamplingParams(max_tokens=2, temperature=0)
    (output,) = llm.chat([{"role": "user", "content": content}], params, use_tqdm=False)
    text = llm.get_tokenizer().decode(output.prompt_token_ids)
    assert re.sub("(<video>)+", "<video>", text) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<video>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


@torch.inference_mode()
def test_clip_aligns_on_longva_s_own_tower(setting: Setting, tmp_path: Path) -> None:
    """Mode `shared`: the alignment model's last layer and head on the engine's features."""
    model = setting.engine.model
    if not model.class_token:
        pytest.skip("this family has a SigLIP tower")
    published = setting.published
    own = published.tower.config
    save_clip(
        tmp_path,
        own.image_size,
        patch_size=own.patch_size,
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=own.num_attention_heads,
    )
    whole, shared = (AlignmentTowers.load(str(tmp_path)) for _ in range(2))
    shared.share_vision(model.config, class_token=model.class_token)
    pixels_TCHW = torch.randn(3, 3, own.image_size, own.image_size)
    found_TD = shared.embed_features(model.see(pixels_TCHW))

    states = published.tower(pixels_TCHW, output_hidden_states=True).hidden_states[-2]
    vision = whole.model.vision_model
    last = vision.encoder.layers[-1](states, attention_mask=None)
    last = last[0] if isinstance(last, tuple) else last
    expected_TD = whole.model.visual_projection(vision.post_layernorm(last[:, 0]))
    torch.testing.assert_close(found_TD, expected_TD, atol=1e-4, rtol=1e-4)
