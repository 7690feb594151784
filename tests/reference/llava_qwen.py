"""The published architecture in plain PyTorch: one image or frame at a time, nothing of vLLM.

Read from EvolvingLMMs-Lab/LongVA at f4c8781d and LLaVA-VL/LLaVA-NeXT at df179663: `llava_arch.py`,
`clip_encoder.py`, `siglip_encoder.py`, `mm_utils.py`. Towers and decoder are Hugging Face's.

Shape suffixes: T frames or tiles, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionModel,
)

from tests.reference import stage1
from tests.reference.decoder import LanguageModel
from tests.reference.llava_qwen_checkpoint import read_weights

TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector."


@dataclass
class PublishedModel:
    """A checkpoint: its configuration as it was published, its tower, and its other weights."""

    config: dict[str, Any]
    tower: Any
    weights: dict[str, Tensor]
    language: LanguageModel

    @property
    def grid(self) -> int:
        """Patches a side of a frame."""
        return int(self.tower.config.image_size // self.tower.config.patch_size)

    @property
    def newlines(self) -> str:
        """Where a video's newlines stand."""
        if self.config["mm_patch_merge_type"] == "unires":
            return stage1.NOWHERE
        grid = self.config.get("mm_newline_position", "one_token") == "grid"
        return stage1.ROW if grid else stage1.EVENT

    @property
    def pooling(self) -> str:
        """The pooling of videos."""
        default = "average" if self.config["mm_patch_merge_type"] == "unires" else "bilinear"
        return str(self.config.get("mm_spatial_pool_mode", default))

    def patches(self, pixels_CHW: Tensor) -> Tensor:
        """Projected patches [P, D] of one frame or tile."""
        outputs = self.tower(pixels_CHW[None], output_hidden_states=True)
        if self.tower.config.model_type == "clip_vision_model":
            states = outputs.hidden_states[self.config["mm_vision_select_layer"]][0, 1:]
        else:
            states = outputs.hidden_states[-1][0]
        w = self.weights
        inner = functional.linear(states, w[f"{PROJECTOR}0.weight"], w[f"{PROJECTOR}0.bias"])
        inner = functional.gelu(inner)
        return functional.linear(inner, w[f"{PROJECTOR}2.weight"], w[f"{PROJECTOR}2.bias"])

    def newline(self) -> Tensor:
        """The newline embedding [D]; zeros that no token shows where there is none."""
        width = len(self.weights[f"{PROJECTOR}2.bias"])
        return self.weights.get("model.image_newline", torch.zeros(width))

    @torch.no_grad()
    def video(self, pixels_TCHW: Tensor) -> Tensor:
        """The dense tokens [N, D] of one video: `get_2dPool`, then `mm_newline_position`."""
        patches = torch.stack([self.patches(frame) for frame in pixels_TCHW])
        one_event = [0] * len(patches)
        return stage1.pack(
            patches,
            one_event,
            one_event,
            self.newline(),
            self.grid,
            (2, 2, 2),
            self.pooling,
            self.newlines,
        ).tokens_ND

    @torch.no_grad()
    def image(self, pixels_TCHW: Tensor, height: int, width: int) -> Tensor:
        """The tokens [N, D] of one image from its base tile and its tiles."""
        base, *tiles = [self.patches(tile) for tile in pixels_TCHW]
        if self.config["mm_patch_merge_type"] == "unires":
            return torch.cat([stage1.pool_frame(t, self.grid, 2, "average") for t in tiles])
        across, down = self._tile_counts(height, width)
        assert len(tiles) == across * down
        grid = self.grid
        lines = []
        for y in range(down * grid):
            for x in range(across):
                tile = tiles[y // grid * across + x]
                lines.append(tile.reshape(grid, grid, -1)[y % grid])
        whole_DHW = torch.cat(lines).reshape(down * grid, across * grid, -1).permute(2, 0, 1)
        whole_DHW = unpadded(whole_DHW, width, height)
        _, rows, columns = whole_DHW.shape
        times = math.sqrt(rows * columns / (9 * grid**2))
        if times > 1.1:
            size = [int(rows // times), int(columns // times)]
            whole_DHW = functional.interpolate(whole_DHW[None], size, mode="bilinear")[0]
        newline_D11 = self.newline()[:, None, None]
        closed = torch.cat([whole_DHW, newline_D11.expand(-1, whole_DHW.shape[1], 1)], dim=-1)
        return torch.cat([base, closed.flatten(1).T])

    def _tile_counts(self, height: int, width: int) -> tuple[int, int]:
        side = self.tower.config.image_size
        wide, high = best_resolution(width, height, resolutions(self.config, side))
        return wide // side, high // side


def load(folder: Path) -> PublishedModel:
    """Load a checkpoint; every weight of it must have a place."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = read_weights(folder)
    tower_config = AutoConfig.from_pretrained(config["mm_vision_tower"])
    is_clip = tower_config.model_type == "clip_vision_model"
    if not is_clip:  # the published code deletes the last layer and the head
        tower_config.num_hidden_layers -= 1
        tower_config.vision_use_head = False
    kind = CLIPVisionModel if is_clip else SiglipVisionModel
    tower = kind._from_config(tower_config, attn_implementation="eager").eval()
    own = {n.removeprefix(TOWER): weights.pop(n) for n in list(weights) if n.startswith(TOWER)}
    expected = tower.state_dict().keys()
    if not next(iter(expected)).startswith("vision_model."):
        own = {name.removeprefix("vision_model."): value for name, value in own.items()}
    _load(tower, own)
    names = ("mm_", "image_", "vision_", "tokenizer_")
    text = Qwen2Config(**{n: v for n, v in config.items() if not n.startswith(names)})
    decoder = Qwen2ForCausalLM._from_config(text, attn_implementation="eager").eval()
    extra = [n for n in weights if n.startswith(PROJECTOR) or n == "model.image_newline"]
    rest = {name: weights.pop(name) for name in extra}
    _load(decoder, weights)
    return PublishedModel(config, tower, rest, LanguageModel(decoder.model, decoder.lm_head))


def _load(module: Any, state: dict[str, Tensor]) -> None:
    found = module.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    assert not missing, missing
    assert not found.unexpected_keys, found.unexpected_keys


def resolutions(config: dict[str, Any], side: int) -> list[tuple[int, int]]:
    """`image_grid_pinpoints` as (width, height)."""
    given = config["image_grid_pinpoints"]
    if isinstance(given, str):
        first, last = int(given[1]), int(given[-4])
        counts = range(first, last + 1)
        return [(wide * side, high * side) for wide in counts for high in counts]
    return [(wide, high) for wide, high in given]


def best_resolution(width: int, height: int, choices: list[tuple[int, int]]) -> tuple[int, int]:
    """`select_best_resolution`: most of the image kept, then least of the canvas wasted."""
    best, most, least = choices[0], 0, math.inf
    for wide, high in choices:
        scale = min(wide / width, high / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - effective
        if effective > most or (effective == most and wasted < least):
            best, most, least = (wide, high), effective, wasted
    return best


def unpadded(image_DHW: Tensor, width: int, height: int) -> Tensor:
    """`unpad_image`: features of the image without the padding of its canvas."""
    rows, columns = image_DHW.shape[1:]
    if width / height > columns / rows:
        padding = (rows - int(height * columns / width)) // 2
        return image_DHW[:, padding : rows - padding]
    padding = (columns - int(width * rows / height)) // 2
    return image_DHW[:, :, padding : columns - padding]
