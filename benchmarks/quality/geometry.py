"""The sizes of a model that determine its tokens and the bytes of its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from metok_vllm.errors import ConfigError
from metok_vllm.plan.families import deepstack_levels, video_layout
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.layout import VideoLayout

AUTO = "auto"
# vLLM's `auto` serves single-precision checkpoints in half precision, too (config/model.py,
# `_resolve_auto_dtype`).
DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, AUTO: 2}
# Cache types without extra bytes such as scales; `auto` is the model's dtype.
CACHE_BYTES = {"bfloat16": 2, "float16": 2} | dict.fromkeys(
    ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"), 1
)


@dataclass(frozen=True)
class Geometry:
    """`value_bytes`: of a KV cache element. `video`: from sampled frames to their layout. `first`:
    the first layer at which stages may begin."""

    layers: int
    kv_heads: int
    head_size: int
    value_bytes: int
    video: Callable[[int], VideoLayout] = field(compare=False)
    first: int = 1

    @classmethod
    def of_model(cls, model: str, dtype: str = AUTO, cache_dtype: str = AUTO) -> Geometry:
        """From the Hugging Face configuration of a model served with vLLM's `--dtype` and
        `--kv-cache-dtype`.

        Raises ConfigError if it cannot be read, or is not a video model with known sizes.
        """
        from transformers import AutoConfig

        from metok_vllm.models.llava_qwen_config import register_config

        register_config()
        try:
            config = AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the configuration of {model}: {error}") from error
        text: Any = getattr(config, "text_config", None)
        vision: Any = getattr(config, "vision_config", None)
        if text is None or vision is None or not getattr(vision, "patch_size", None):
            raise ConfigError(f"{model} is no video model whose sizes are known")
        if dtype not in DTYPE_BYTES:
            raise ConfigError(f"no size is known for values of dtype {dtype!r}", "dtype")
        if cache_dtype not in (AUTO, *CACHE_BYTES):
            raise ConfigError(f"no size is known for a KV cache of {cache_dtype!r}", "dtype")
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
            value_bytes=CACHE_BYTES.get(cache_dtype, DTYPE_BYTES[dtype]),
            video=partial(video_layout, config),
            first=max(deepstack_levels(config), 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `grid` and `columns` are the features of a frame."""
        video = self.video(1)
        return {
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_size": self.head_size,
            "value_bytes": self.value_bytes,
            "grid": video.rows,
            "columns": video.columns,
            "unit": video.unit,
            "pooling": video.pooling,
            "closes_events": video.closes_events,
            "row_newline": video.row_newline,
        }

    @property
    def token_layer_bytes(self) -> int:
        """KV bytes of one token in one layer."""
        return 2 * self.kv_heads * self.head_size * self.value_bytes

    def layout(self, boundaries: Sequence[int] | None) -> StageLayout:
        """The pruning stages for these boundaries; None is the default of a server."""
        if boundaries is None:
            return StageLayout.of(None, self.layers, self.first)
        p0, p1, p2 = boundaries
        return StageLayout.of((p0, p1, p2), self.layers)

    def kv_token_layers(self, report: Mapping[str, Any], prompt_tokens: int) -> int:
        """Prompt tokens held for decoding, summed over layers, from a response's `metok` object."""
        held = report["visual_tokens"]["decode"]
        if len(held) != NUM_STAGES:
            return self.layers * prompt_tokens
        text = prompt_tokens - report["visual_tokens"]["encoded"]
        sizes = self.layout(report["pruning_layers"]).stage_sizes
        return sum(size * (text + tokens) for size, tokens in zip(sizes, held, strict=True))

    def kv_bytes(self, report: Mapping[str, Any], block_size: int) -> int:
        """Bytes of the blocks that a request holds when its first token is decoded.

        A block is `block_size` tokens in the layers of one cache group.
        """
        boundaries = report["pruning_layers"]
        group = self.layers if boundaries is None else self.layout(boundaries).layers_per_group
        blocks: int = report["kv_blocks"]["decode"]
        return blocks * block_size * group * self.token_layer_bytes
