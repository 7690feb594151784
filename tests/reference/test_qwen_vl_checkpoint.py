"""Qwen's tiny checkpoints: published names; the reference decoder equals Hugging Face on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.reference.decoder import generate
from tests.reference.mrope import Medium, Positions, dense_positions
from tests.reference.qwen_vl_checkpoint import load_model, write_checkpoint
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN_VL
from tests.reference.staged_checkpoint import language_model

FOLDERS = pytest.TempPathFactory
# Some names of each repository's weights, with their shapes here.
PUBLISHED: dict[str, dict[str, list[int]]] = {
    QWEN2_5_VL: {
        "model.embed_tokens.weight": [1088, 128],
        "model.layers.7.self_attn.q_proj.bias": [128],
        "visual.patch_embed.proj.weight": [64, 3, 2, 14, 14],
        "visual.merger.mlp.2.weight": [128, 256],
    },
    QWEN3_VL: {
        "model.language_model.layers.7.self_attn.k_norm.weight": [32],
        "model.visual.deepstack_merger_list.2.linear_fc2.weight": [128, 256],
        "model.visual.pos_embed.weight": [64, 64],
        "lm_head.weight": [1088, 128],
    },
    QWEN3_VL_MOE: {
        "model.language_model.layers.0.mlp.gate.weight": [4, 128],
        "model.language_model.layers.0.mlp.experts.gate_up_proj": [4, 128, 192],
        "model.language_model.layers.0.mlp.experts.down_proj": [4, 96, 128],
    },
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: FOLDERS) -> Any:
    @cache
    def write(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / "model"
        write_checkpoint(folder, family)
        return folder

    return write


@pytest.mark.parametrize("family", PUBLISHED)
def test_weights_have_their_published_names_and_layouts(folder_of: Any, family: str) -> None:
    with safe_open(folder_of(family) / "model.safetensors", "pt") as file:
        for name, shape in PUBLISHED[family].items():
            assert file.get_slice(name).get_shape() == shape


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL])
def test_chats_are_written_as_the_published_templates_write_them(
    folder_of: Any, family: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_of(family))
    parts = [
        {"type": "video", "video": "a.mp4"},
        {"type": "text", "text": "and "},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "what?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "that"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert chat == (system if family == QWEN2_5_VL else "") + (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>and "
        "<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n"
        "<|im_start|>assistant\nthat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_tokens_to_ids(list(ID_OF)) == list(ID_OF.values())


@torch.no_grad()
@pytest.mark.parametrize("family", QWEN_VL)
def test_the_reference_decoder_equals_hugging_face(folder_of: Any, family: str) -> None:
    """M-RoPE in prefill and decoding, norms of queries and keys, experts, deepstack."""
    model = load_model(folder_of(family))
    language = language_model(model)
    video = ID_OF["<|video_pad|>"]
    ids = [*range(400, 405), *[video] * 12, *range(500, 509)]
    # For Qwen3-VL one temporal patch, since there is no text between the frames here.
    medium = Medium(2, 2, 3, 1.5) if family == QWEN2_5_VL else Medium(1, 3, 4)
    rotary = dense_positions(family, ids, [], [medium])
    assert rotary.delta < 0
    generator = torch.Generator().manual_seed(3)
    embeds_ND = language.decoder.embed_tokens(torch.tensor(ids))
    is_visual = torch.tensor(ids) == video
    embeds_ND[is_visual] = 0.3 * torch.randn(12, 128, generator=generator)
    levels = 0 if family == QWEN2_5_VL else 3
    rows_LMD = 0.3 * torch.randn(levels, 12, 128, generator=generator)
    deepstack = torch.zeros(levels, len(ids), 128)
    deepstack[:, is_visual] = rows_LMD
    found = generate(
        language, embeds_ND, [], (2, 4, 6), 6, (), rotary=rotary, deepstack=list(deepstack)
    )

    answer = language.decoder.embed_tokens(torch.tensor(found.tokens[:-1]))
    whole_ND = torch.cat([embeds_ND, answer])
    places = [rotary.at(index) for index in range(len(whole_ND))]
    options: dict[str, Any] = {}
    if levels:
        mask = torch.cat([is_visual, torch.zeros(len(answer), dtype=torch.bool)])
        options = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": list(rows_LMD)}
    output = language.decoder(
        inputs_embeds=whole_ND[None],
        position_ids=torch.tensor(places).T[:, None],
        **options,
    )
    wanted_SV = model.lm_head(output.last_hidden_state[0, len(ids) - 1 :]).log_softmax(-1)
    torch.testing.assert_close(found.logprobs_SV, wanted_SV, atol=2e-5, rtol=0)

    def changed(**other: Any) -> float:
        settings = {"rotary": rotary, "deepstack": list(deepstack), **other}
        wrong = generate(language, embeds_ND, [], (2, 4, 6), 1, (), **settings)
        return float((wrong.logprobs_SV - found.logprobs_SV[:1]).abs().max())

    assert changed(rotary=Positions.counted(len(ids))) > 0.1
    assert not levels or changed(deepstack=list(deepstack[[1, 0, 2]])) > 0.1
