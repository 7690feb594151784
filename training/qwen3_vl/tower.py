"""The vision tower's pass over many pairs of frames of one size, with Hugging Face's modules.

Hugging Face attends to each pair in a loop of its own, which costs more than the pass itself here.

Shape suffixes: N pairs, H height, W width, C colours, P patches, D features, K merged tokens.
Patches are in the order of serving: the four patches of a merged token follow each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from training.qwen3_vl.sizes import (
    DEEPSTACK,
    FEATURE_LAYERS,
    MERGE,
    PATCH,
    vision_config,
)

Grid = tuple[int, int]  # patches along height and width


class Tower(nn.Module):
    """Patch features of pairs, and the mergers that make the decoder's tokens of them."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen3VLConfig(vision_config=vision_config()).vision_config
        config._attn_implementation = "sdpa"
        self.visual = Qwen3VLVisionModel(config).float()

    def features(self, patches_NPX: Tensor, grid: Grid) -> Tensor:
        """Outputs [N, P, D * len(FEATURE_LAYERS)] of those layers."""
        visual = self.visual
        thw = torch.tensor([[1, *grid]])
        hidden_NPD = F.linear(
            patches_NPX, visual.patch_embed.proj.weight.flatten(1), visual.patch_embed.proj.bias
        )
        index, weight = get_vision_interpolation_indices_and_weights(
            thw,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=MERGE,
        )
        hidden_NPD = hidden_NPD + (visual.pos_embed(index) * weight[..., None]).sum(1)
        turn = visual.rotary_pos_emb(hidden_NPD, get_vision_position_ids(thw, MERGE))
        kept = []
        for number, block in enumerate(visual.blocks):
            hidden_NPD = hidden_NPD + _attend(block.attn, block.norm1(hidden_NPD), turn)
            hidden_NPD = hidden_NPD + block.mlp(block.norm2(hidden_NPD))
            if number in FEATURE_LAYERS:
                kept.append(hidden_NPD)
        return torch.cat(kept, -1)

    def last(self, features_NPD: Tensor) -> Tensor:
        """The last layer's part of `features`, [N, P, D]."""
        return features_NPD.chunk(len(FEATURE_LAYERS), -1)[-1]

    def tokens(self, features_NPD: Tensor) -> Tensor:
        """Merged tokens [N, K, D], without those of deepstack."""
        merged: Tensor = self.visual.merger(self.last(features_NPD).flatten(0, 1).contiguous())
        return merged.view(len(features_NPD), -1, merged.shape[-1])

    def deepstack(self, features_NPD: Tensor) -> list[Tensor]:
        """Tokens [N, K, D] for each deepstack level."""
        parts = features_NPD.chunk(len(FEATURE_LAYERS), -1)
        levels = []
        for layer, merger in zip(DEEPSTACK, self.visual.deepstack_merger_list, strict=True):
            level = merger(parts[FEATURE_LAYERS.index(layer)].flatten(0, 1).contiguous())
            levels.append(level.view(len(features_NPD), -1, level.shape[-1]))
        return levels

    def mergers(self) -> nn.ModuleList:
        """The modules that are trained with the decoder."""
        return nn.ModuleList([self.visual.merger, self.visual.deepstack_merger_list])


def to_patches(pixels_N2HWC: Tensor) -> tuple[Tensor, Grid]:
    """Pairs of frames uint8 as the processor's patches, float32 [N, P, C * 2 * 16 * 16]."""
    pairs, frames, height, width, colours = pixels_N2HWC.shape
    rows, columns = height // PATCH, width // PATCH
    cut = pixels_N2HWC.reshape(
        pairs, frames, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, colours
    ).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    patches_NPX = cut.reshape(pairs, rows * columns, -1).float().div_(127.5).sub_(1)
    return patches_NPX, (rows, columns)


def merge_order(grid: Grid) -> Tensor:
    """Numbers [P] of row-major patches in the order of serving."""
    rows, columns = grid
    number = torch.arange(rows * columns).view(rows // MERGE, MERGE, columns // MERGE, MERGE)
    return number.transpose(1, 2).flatten()


@torch.no_grad()
def encode_pairs(tower: Tower, pixels_N2HWC: Tensor) -> Tensor:
    """`Tower.features` of many pairs as bfloat16 [N, P, D * layers]."""
    parts = []
    for part in pixels_N2HWC.split(64):
        patches_NPX, grid = to_patches(part)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(tower.features(patches_NPX, grid).bfloat16())
    return torch.cat(parts)


def _attend(attention: Any, hidden_NPD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    pairs, patches, width = hidden_NPD.shape
    qkv = attention.qkv(hidden_NPD).view(pairs, patches, 3, attention.num_heads, -1)
    query, key, value = qkv.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *turn)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scaling
    )
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(pairs, patches, width))
    return out
