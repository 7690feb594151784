"""Sizes of LLaVA checkpoints with random weights, and the flags that a server gets for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ONE_MEDIUM = ("--limit-mm-per-prompt", '{"video": 1, "image": 1}')
# A dense prompt of 128 frames takes one step.
CPU_FLAGS = (
    *("--enforce-eager", "--block-size", "32"),
    *("--max-model-len", "16384", "--max-num-batched-tokens", "8192"),
    *("--kv-cache-memory-bytes", str(1 << 30)),
    *ONE_MEDIUM,
)
GPU_FLAGS = ("--max-num-batched-tokens", "16384", "--load-format", "dummy", *ONE_MEDIUM)


@dataclass(frozen=True)
class Tower:
    """A vision tower: `image` and `patch` are sides in pixels."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    image: int
    patch: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a video model: decoder, vision tower, and alignment towers.

    `alignment` None uses the demo's towers. Without `real_weights` only the configuration is
    written, for `--load-format dummy`. `flags` are the flags of `vllm serve` for this model.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    positions: int
    rope_theta: float
    tower: Tower
    alignment: Tower | None
    real_weights: bool
    flags: tuple[str, ...]


SIGLIP_SO400M = Tower(27, 1152, 16, 4304, image=384, patch=14)
QWEN2_7B: dict[str, Any] = {
    "layers": 28,
    "hidden": 3584,
    "heads": 28,
    "kv_heads": 4,
    "intermediate": 18944,
    "tied": False,
    "alignment": SIGLIP_SO400M,
    "real_weights": False,
}
SIZES = {
    # The decoder of LLaVA-OneVision-0.5B with the demo's small vision tower (14 x 14 patches), so
    # that the decoder takes most of the time on a CPU as well.
    "cpu-reference": Sizes(
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        intermediate=4864,
        vocabulary=152000,
        tied=True,
        positions=32768,
        rope_theta=1e6,
        tower=Tower(3, 128, 4, 256, image=112, patch=8),
        alignment=None,
        real_weights=True,
        flags=("--dtype", "bfloat16", *CPU_FLAGS),
    ),
    # SigLIP without its last layer, as published.
    "llava-onevision-7b": Sizes(
        **QWEN2_7B,
        vocabulary=152128,
        positions=32768,
        rope_theta=1e6,
        tower=Tower(26, 1152, 16, 4304, image=384, patch=14),
        flags=("--dtype", "bfloat16", "--max-model-len", "32768", *GPU_FLAGS),
    ),
    # CLIP ViT-L/14-336 without its last layer, as SigLIP layers: 24 x 24 patches, 144 tokens a
    # frame. vLLM has no LongVA, so its sizes use LLaVA-OneVision's layout.
    "longva-7b": Sizes(
        **QWEN2_7B,
        vocabulary=152064,
        positions=224000,
        rope_theta=1e9,
        tower=Tower(23, 1024, 16, 4096, image=336, patch=14),
        flags=("--dtype", "bfloat16", "--max-model-len", "65536", *GPU_FLAGS),
    ),
}
