"""FLOPs of the vision tower on one video, up to features of the decoder's width.

METok runs the tower on every frame, as the model does; this is what a request costs beside its
prefill. With `reduce: resize` coarse frames are smaller. Norms, activations and position embeddings
are left out.
"""

from __future__ import annotations

from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.config.families import QWEN2_5_VL, QWEN_VL
from metok_vllm.plan.decoder_flops import LayerCost
from metok_vllm.plan.layout import VideoLayout


def tower_flops(config: Any, video: VideoLayout) -> int:
    """FLOPs of the tower and of what joins it to the decoder on all frames of `video`.

    `config` is the model's Hugging Face configuration: LLaVA with SigLIP or CLIP, or Qwen's.
    """
    if getattr(config, "model_type", None) in QWEN_VL:
        return video.frames * _qwen(config, video)
    return video.frames * _llava(config, video)


def resized_tower_flops(config: Any, video: VideoLayout, metok: METokConfig) -> int:
    """The same where each frame is encoded at the resolution of its stride, in Qwen's models."""
    return sum(
        count * _qwen(config, video.at(stride))
        for count, stride in zip(video.budget(metok).counts, metok.strides, strict=True)
    )


def _llava(config: Any, video: VideoLayout) -> int:
    """A frame through the layers up to the one whose features are read, and the projector."""
    vision = config.vision_config
    width, patches = int(vision.hidden_size), video.rows * video.columns
    tokens = patches + ("clip" in vision.model_type)  # CLIP's class token
    layer = _layer(width, 2 * int(vision.intermediate_size))
    read = config.vision_feature_layer
    # -1 is the last layer's output, -2 that of the layer before it.
    states = range(int(vision.num_hidden_layers) + 1)
    layers = max(states[state] for state in ([read] if isinstance(read, int) else read))
    embedding = patches * 3 * int(vision.patch_size) ** 2 * width
    hidden = int(config.text_config.hidden_size)
    projector = patches * (width * hidden + hidden * hidden)
    return layers * layer.flops(tokens) + 2 * (embedding + projector)


def _qwen(config: Any, video: VideoLayout) -> int:
    """A temporal patch through all blocks, the merger, and one merger for each deepstack level."""
    vision = config.vision_config
    width, side = int(vision.hidden_size), int(vision.patch_size)
    features = video.rows * video.columns
    patches = features * video.unit**2
    gated = config.model_type == QWEN2_5_VL
    layer = _layer(width, (3 if gated else 2) * int(vision.intermediate_size))
    blocks = int(vision.depth) * 2 * patches * layer.per_token
    full = int(vision.depth)
    if gated:
        full = len(vision.fullatt_block_indexes)
        window = int(vision.window_size) // (side * video.unit)
        pairs = _squares(video.rows, window) * _squares(video.columns, window) * video.unit**4
        blocks += (int(vision.depth) - full) * 2 * pairs * layer.per_pair
    blocks += full * 2 * patches**2 * layer.per_pair
    embedding = patches * 3 * int(vision.temporal_patch_size) * side**2 * width
    merged = width * video.unit**2
    mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    merging = mergers * features * (merged * merged + merged * int(vision.out_hidden_size))
    return blocks + 2 * (embedding + merging)


def _layer(width: int, mlp: int) -> LayerCost:
    """A layer with as many key as query heads, and an MLP of `mlp` columns and rows in all."""
    return LayerCost(width * (4 * width + mlp), 2 * width)


def _squares(length: int, window: int) -> int:
    """The sum of the squared sides of the windows that cut `length`; the last may be shorter."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
