"""The demo model's weights as a first guess of Qwen3-VL's.

The tower: patches of 16 pixels from patches of 14, each frame of a pair with half the weight. The
decoder: Qwen2's biases become part of the weights, and the scale of queries and keys that of their
norms. Both are approximate and are trained afterwards.

Shape suffixes: N frames, H height, W width, C colours, P patches, D features, R rows.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from training.qwen3_vl.decoder import Student
from training.qwen3_vl.sizes import BASE, MERGE, PATCH, SPECIAL, TEMPORAL, VOCAB
from training.qwen3_vl.tower import Grid, Tower
from training.towers import video_features

RIDGE = 1e-3  # of the regression that replaces biases, as a share of the mean square
PARTS = {"q_proj": "q_norm", "k_proj": "k_norm", "v_proj": None}


def load_demo(folder: Path) -> Any:
    """The demo's LLaVA-OneVision in float32."""
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def demo_features(demo: Any, pixels_NHWC: Tensor) -> Tensor:
    """The demo's projected patches [N, P, D] of uint8 frames of any size, before pooling."""
    parts = []
    for part in pixels_NHWC.split(128):
        frames_NCHW = part.permute(0, 3, 1, 2)
        if frames_NCHW.shape[-1] != BASE.image or frames_NCHW.shape[-2] != BASE.image:
            frames_NCHW = F.interpolate(
                frames_NCHW, (BASE.image, BASE.image), mode="bicubic", antialias=True
            )
        with torch.autocast("cpu", torch.bfloat16):
            seen_NPD = _seen(demo, frames_NCHW)
            parts.append(demo.model.multi_modal_projector(seen_NPD).float())
    return torch.cat(parts).clone()


def _seen(demo: Any, frames_NCHW: Tensor) -> Tensor:
    """Outputs [N, P, D] of the demo's tower for uint8 frames."""
    tower = SimpleNamespace(vision_model=demo.model.vision_tower)
    return video_features(tower, frames_NCHW.float() / 127.5 - 1, BASE.video_tower_layers)


def demo_tokens(patches_NPD: Tensor, grid: Grid) -> Tensor:
    """The demo's tokens [N, K, D] as a model with `grid` patches would have them."""
    frames, patches, width = patches_NPD.shape
    side = BASE.grid
    assert patches == side**2
    plane_NDHW = patches_NPD.transpose(1, 2).reshape(frames, width, side, side)
    if grid != (side, side):
        plane_NDHW = F.interpolate(plane_NDHW, grid, mode="bilinear", antialias=True)
    return F.avg_pool2d(plane_NDHW, MERGE).flatten(2).transpose(1, 2)


@torch.no_grad()
def start_tower(tower: Tower, demo: Any, pixels_NHWC: Tensor) -> None:
    """Fill the tower from the demo's. `pixels_NHWC`: some frames of the demo's size, uint8."""
    visual, source = tower.visual, demo.model.vision_tower
    kernel = source.embeddings.patch_embedding.weight
    larger = F.interpolate(kernel, (PATCH, PATCH), mode="bilinear")
    scale = (kernel.shape[-1] / PATCH) ** 2 / TEMPORAL
    visual.patch_embed.proj.weight.copy_(
        larger[:, :, None].expand(-1, -1, TEMPORAL, -1, -1) * scale
    )
    visual.patch_embed.proj.bias.copy_(source.embeddings.patch_embedding.bias)
    visual.pos_embed.weight.copy_(source.embeddings.position_embedding.weight)
    for block, layer in zip(visual.blocks, source.encoder.layers, strict=True):
        attention = layer.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        block.attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        _copy(block.attn.proj, attention.out_proj)
        _copy(block.norm1, layer.layer_norm1)
        _copy(block.norm2, layer.layer_norm2)
        _copy(block.mlp.linear_fc1, layer.mlp.fc1)
        _copy(block.mlp.linear_fc2, layer.mlp.fc2)
    _start_merger(
        visual.merger,
        demo.model.multi_modal_projector,
        _seen(demo, pixels_NHWC.permute(0, 3, 1, 2)),
    )
    for merger in visual.deepstack_merger_list:
        nn.init.zeros_(merger.linear_fc2.weight)
        nn.init.zeros_(merger.linear_fc2.bias)


def _start_merger(merger: Any, projector: Any, seen_NPD: Tensor) -> None:
    """The projector on each of four patches, and the mean of its outputs."""
    rows_RD = seen_NPD.flatten(0, 1)
    scale = rows_RD.std(1).mean()
    merger.norm.weight.copy_(scale.expand(BASE.width))
    merger.norm.bias.copy_(rows_RD.mean(1).mean().expand(BASE.width))
    first, second, cells = projector.linear_1, projector.linear_2, MERGE**2
    merger.linear_fc1.weight.copy_(torch.block_diag(*[first.weight] * cells))
    merger.linear_fc1.bias.copy_(first.bias.repeat(cells))
    merger.linear_fc2.weight.copy_(second.weight.repeat(1, cells) / cells)
    merger.linear_fc2.bias.copy_(second.bias)


@torch.no_grad()
def start_student(student: Student, demo: Any, inputs: list[Tensor], old: Any, new: Any) -> None:
    """Fill the decoder from the demo's.

    `inputs`: embedded sequences [R, D] that the demo is used on; `old` and `new`: the tokenizers.
    """
    source = demo.model.language_model
    _start_vocabulary(student, demo, old, new)
    student.model.norm.weight.copy_(source.norm.weight)
    normed: list[list[Tensor]] = [[] for _ in source.layers]
    hooks = [
        layer.input_layernorm.register_forward_hook(
            lambda _, __, out, kept=kept: kept.append(out.flatten(0, 1))
        )
        for layer, kept in zip(source.layers, normed, strict=True)
    ]
    for sequence_RD in inputs:
        source(inputs_embeds=sequence_RD[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer, theirs, kept in zip(student.model.layers, source.layers, normed, strict=True):
        rows_RD = torch.cat(kept).double()
        square_DD = rows_RD.T @ rows_RD / len(rows_RD)
        square_DD.diagonal().add_(RIDGE * square_DD.diagonal().mean())
        one_D = torch.linalg.solve(square_DD, rows_RD.mean(0))  # rows @ one_D is about 1
        for name, norm in PARTS.items():
            part = getattr(theirs.self_attn, name)
            weight = part.weight.double() + part.bias.double()[:, None] * one_D[None]
            getattr(layer.self_attn, name).weight.copy_(weight)
            if norm is not None:
                size = (rows_RD @ weight.T).view(len(rows_RD), -1, BASE.width // BASE.heads)
                scale = size.square().mean(-1).sqrt().mean()
                getattr(layer.self_attn, norm).weight.fill_(float(scale))
        layer.self_attn.o_proj.weight.copy_(theirs.self_attn.o_proj.weight)
        layer.input_layernorm.weight.copy_(theirs.input_layernorm.weight)
        layer.post_attention_layernorm.weight.copy_(theirs.post_attention_layernorm.weight)
        layer.mlp.load_state_dict(theirs.mlp.state_dict())


def _start_vocabulary(student: Student, demo: Any, old: Any, new: Any) -> None:
    known = old.get_vocab()
    tables = (
        (student.model.embed_tokens.weight, demo.model.language_model.embed_tokens.weight),
        (student.lm_head.weight, demo.lm_head.weight),
    )
    generator = torch.Generator().manual_seed(0)
    for ours_WD, theirs_WD in tables:
        std = float(theirs_WD.std())
        ours_WD.copy_(torch.randn(VOCAB, BASE.width, generator=generator) * std)
        for token, number in new.get_vocab().items():
            pieces = [known[token]] if token in known else []
            if not pieces and token not in SPECIAL:
                pieces = old.encode(new.decode([number])).ids
            if pieces:
                ours_WD[number] = theirs_WD[torch.tensor(pieces)].mean(0)


def _copy(to: nn.Module, source: nn.Module) -> None:
    to.load_state_dict(source.state_dict())
