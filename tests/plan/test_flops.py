"""FLOPs of towers and decoders are those that torch counts while Hugging Face's model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    Qwen2_5_VLConfig,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SiglipVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

from metok_vllm.config import METokConfig
from metok_vllm.plan.accounting import decoder_prefill_flops
from metok_vllm.plan.decoder_flops import LayerCost, layer_costs
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.tower_flops import resized_tower_flops, tower_flops

TEXT = {
    "vocab_size": 32,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
    },
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
VISION = {
    "depth": 4,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 20,
    "out_hidden_size": 24,
    "patch_size": 14,
}
WINDOWS = {"window_size": 112, "fullatt_block_indexes": [1, 3]}
DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
SEED = 0


def counted(run: Callable[[], Any]) -> int:
    """Matrix products and convolutions, two FLOPs a multiply-add."""
    torch.manual_seed(SEED)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    found: int = counter.get_total_flops()
    return found


def prefill(model: Callable[[Any], nn.Module], config: Any, tokens: int) -> int:
    # torch does not count the fused kernels.
    config._attn_implementation = config._experts_implementation = "eager"
    decoder = model(config).eval()
    ids = torch.arange(tokens)[None] % 32
    return counted(lambda: decoder(input_ids=ids, use_cache=False))


@pytest.mark.parametrize(
    "sparse", [{}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0, 3]}], ids=str
)
def test_a_decoder_with_experts(sparse: dict[str, Any]) -> None:
    """Queries are wider than the hidden state here, as in Qwen3-VL-30B-A3B."""
    config = Qwen3VLMoeConfig(text_config={**TEXT, **EXPERTS, **sparse}).text_config
    assert decoder_prefill_flops(config, 7) == prefill(Qwen3VLMoeTextModel, config, 7)


def test_a_dense_decoder_with_its_own_head_size() -> None:
    config = Qwen3VLConfig(text_config=TEXT).text_config
    assert decoder_prefill_flops(config, 9) == prefill(Qwen3VLTextModel, config, 9)


def test_qwen3_5_by_hand() -> None:
    """Three layers of linear attention, then one of gated attention; a shared expert in each."""
    linear = {
        "linear_num_key_heads": 2, "linear_key_head_dim": 4, "linear_conv_kernel_dim": 4,
        "linear_num_value_heads": 4, "linear_value_head_dim": 3,
    }  # fmt: skip
    config = Qwen3_5MoeConfig(
        text_config={**TEXT, **EXPERTS, **linear, "shared_expert_intermediate_size": 10}
    ).text_config
    mlp = 24 * (3 * (2 * 12 + 10) + 6 + 1)
    # Keys and queries of 8, values and gates of 12, two scalars for each of four heads; then out.
    projections = 24 * (2 * 8 + 2 * 12 + 2 * 4) + 12 * 24
    state = 3 * 4 * (4 * 3)
    mixing = LayerCost(projections + 4 * (2 * 8 + 12) + state + mlp, 0)
    attention = LayerCost(24 * (2 * 32 + 2 * 16) + 32 * 24 + mlp, 2 * 32)
    assert layer_costs(config) == (mixing, mixing, mixing, attention)
    # torch's count of the matrices that each layer holds agrees; experts are stacked.
    layers = Qwen3_5MoeTextModel(config).layers
    for layer, cost in zip(layers, (mixing, attention), strict=False):
        assert cost.per_token > sum(
            m.weight.numel() for m in layer.modules() if type(m) is nn.Linear
        )


@pytest.mark.parametrize(("height", "width"), [(112, 168), (224, 140), (280, 308)])
def test_qwen2_5_s_tower_attends_in_windows(height: int, width: int) -> None:
    """Sizes that whole windows of 112 pixels fill, and sizes that leave part of one."""
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config={**VISION, **WINDOWS})
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        config.vision_config, attn_implementation="eager"
    )
    video = video_layout(config, 4, (height, width))
    assert tower_flops(config, video) == of_patches(tower.eval(), 2, height // 14, width // 14, 14)


def test_qwen3_s_tower_has_a_merger_for_each_deepstack_level() -> None:
    vision = {**VISION, **DEEPSTACK, "patch_size": 16}
    config = Qwen3VLConfig(text_config=TEXT, vision_config=vision)
    tower = Qwen3VLVisionModel._from_config(config.vision_config, attn_implementation="eager")
    video = video_layout(config, 6, (96, 160))
    assert tower_flops(config, video) == of_patches(tower.eval(), 3, 6, 10, 16)


def test_resized_frames_cost_less_of_the_tower() -> None:
    config = Qwen3VLConfig(
        text_config=TEXT, vision_config={**VISION, **DEEPSTACK, "patch_size": 16}
    )
    tower = Qwen3VLVisionModel._from_config(config.vision_config, attn_implementation="eager")
    video = video_layout(config, 24, (96, 160))
    metok = METokConfig(num_events=4, key_event_ratio=0.5, key_frames_per_event=1)
    # Twelve temporal patches: two of 6 x 10 patches, six of 4 x 6, four of 2 x 4.
    classes = ((2, 6, 10), (6, 4, 6), (4, 2, 4))
    assert [frames for frames, *_ in classes] == list(video.budget(metok).counts)
    expected = sum(of_patches(tower.eval(), *of_class, 16) for of_class in classes)
    assert resized_tower_flops(config, video, metok) == expected
    assert expected < 0.5 * tower_flops(config, video)


def of_patches(tower: nn.Module, frames: int, rows: int, columns: int, side: int) -> int:
    pixels = torch.zeros(frames * rows * columns, 3 * 2 * side * side)
    return counted(lambda: tower(pixels, torch.tensor([[frames, rows, columns]])))


@pytest.mark.parametrize("clip", [False, True])
def test_llava_s_tower_and_projector(clip: bool) -> None:
    """SigLIP is read at its end, CLIP at the layer before its last, which then does not count."""
    kind = CLIPVisionConfig if clip else SiglipVisionConfig
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
    vision = kind(**sizes, num_hidden_layers=3, image_size=56, patch_size=14)
    read = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"} if clip else {}
    text = {"model_type": "qwen2", "num_hidden_layers": 0, "hidden_size": 24, "layer_types": []}
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(), text_config={**TEXT, **text}, **read
    )
    config._attn_implementation = "eager"
    model = LlavaOnevisionModel(config).eval()
    if clip:
        del model.vision_tower.encoder.layers[-1]
        config.vision_feature_layer = -1
    if hasattr(model.vision_tower, "head"):
        model.vision_tower.head = nn.Identity()
    pixels = torch.zeros(1, 5, 3, 56, 56)
    found = counted(lambda: model.get_video_features(pixels))
    config.vision_feature_layer = -2 if clip else -1
    assert tower_flops(config, video_layout(config, 5)) == found
