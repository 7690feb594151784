"""Qwen checkpoints of the benchmark load in Hugging Face and have the published sizes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
)

from metok_vllm.benchmarks.commands.bench_options import CHECKPOINTS
from metok_vllm.benchmarks.throughput.checkpoints import NAMES
from metok_vllm.benchmarks.throughput.published_costs import published_config
from metok_vllm.benchmarks.throughput.qwen_checkpoint import write_model
from metok_vllm.benchmarks.throughput.qwen_sizes import QWEN_SIZES, SPECIAL_IDS, QwenSizes
from metok_vllm.plan.families import video_layout

SEED = 0


def tiny() -> QwenSizes:
    """The CPU reference with a narrow decoder of two layers."""
    sizes = QWEN_SIZES["cpu-qwen3-vl"]
    config = deepcopy(sizes.config)
    config["text_config"] |= {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    config["vision_config"] |= {"out_hidden_size": 64}
    return replace(sizes, config=config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_model(folder, tiny(), SEED)
    return folder


def test_every_weight_is_there_and_no_other(model: Path) -> None:
    found, info = Qwen3VLForConditionalGeneration.from_pretrained(
        model, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    assert found.lm_head.weight is found.model.language_model.embed_tokens.weight
    assert len(found.model.visual.deepstack_merger_list) == 3
    attention = found.model.language_model.layers[1].self_attn
    # Scores of two unit vectors then deviate by 2.5.
    assert attention.q_norm.weight.square().mean().item() == pytest.approx(2.5, rel=0.01)
    assert found.generation_config.eos_token_id == [151645, 151643]


def test_special_tokens_have_qwen_s_ids_and_every_id_a_text(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for token, number in SPECIAL_IDS.items():
        assert tokenizer(token).input_ids == [number]
    assert len(tokenizer) == 151936
    assert tokenizer.decode([151650]).strip() == "#151650"


@pytest.mark.parametrize("frames", [4, 26])
def test_a_prompt_has_the_layout_that_is_counted(model: Path, frames: int) -> None:
    """Hugging Face's processor writes grid and timestamps; two frames a second, as is assumed."""
    processor = AutoProcessor.from_pretrained(model)
    content = [{"type": "video"}, {"type": "text", "text": "where"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text.count("<|vision_start|><|video_pad|><|vision_end|>") == 1
    indices = list(range(frames))
    metadata = {"fps": 2.0, "total_num_frames": frames, "frames_indices": indices}
    video = torch.zeros(frames, 3, 200, 320, dtype=torch.uint8)
    inputs: Any = processor(
        text=text,
        videos=[video],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0].tolist()
    config = AutoConfig.from_pretrained(model)
    layout = video_layout(config, frames, (200, 320))
    grid = [layout.frames, 2 * layout.rows, 2 * layout.columns]
    assert inputs["video_grid_thw"].tolist() == [grid]
    features = ids.count(SPECIAL_IDS["<|video_pad|>"])
    assert features == layout.frames * layout.rows * layout.columns
    first = ids.index(SPECIAL_IDS["<|video_pad|>"])
    after = len(ids) - 1 - ids[::-1].index(SPECIAL_IDS["<|video_pad|>"])
    # Between the first and the last feature stand all separators but the first and the last.
    inside = layout.separators - len(layout.before[0]) - len(layout.after[-1])
    # Qwen's vocabulary has ` seconds` as a word, the demo's has not.
    inside += (layout.frames - 1) * (len(processor.tokenizer(" seconds").input_ids) - 1)
    assert after + 1 - first == features + inside


@pytest.mark.parametrize(
    ("name", "parameters", "tower"),
    # Of the hub's files: 8.29, 8.77 and 31.1 billion with their towers.
    [
        ("Qwen2.5-VL-7B", 8_292_166_656, (670, 680)),
        ("Qwen3-VL-8B", 8_767_123_696, (570, 580)),
        ("Qwen3-VL-30B-A3B", 31_070_754_032, (530, 540)),
    ],
)
def test_as_large_as_the_published_model(
    name: str, parameters: int, tower: tuple[int, int]
) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(published_config(name))
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    of_tower = sum(tensor.numel() for tensor in model.model.visual.parameters()) / 1e6
    assert tower[0] <= of_tower <= tower[1]


def test_the_cpu_reference_has_the_decoder_of_the_other_one() -> None:
    text = QWEN_SIZES["cpu-qwen3-vl"].text
    assert (text["num_hidden_layers"], text["hidden_size"], text["intermediate_size"]) == (
        24, 896, 4864
    )  # fmt: skip
    assert set(CHECKPOINTS) == set(NAMES)
