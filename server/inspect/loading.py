"""The frame encoder of a checkpoint, by its model family; the decoder is not loaded."""

from __future__ import annotations

import torch

from metok_vllm.config.families import QWEN2_5_VL
from metok_vllm.errors import ConfigError
from metok_vllm.hf_loading import quiet_loading, require_all_weights
from metok_vllm.server.inspect.frame_features import FrameEncoder
from metok_vllm.server.inspect.qwen_features import QwenFrameEncoder
from metok_vllm.torch_shims import ensure_torchvision_ops

ENCODERS: dict[str, type[FrameEncoder]] = {
    "llava_onevision": FrameEncoder,
    QWEN2_5_VL: QwenFrameEncoder,
    "qwen3_vl": QwenFrameEncoder,
    "qwen3_vl_moe": QwenFrameEncoder,
}


def load_encoder(path: str) -> FrameEncoder:
    """Load from a path or hub name. Raises ConfigError if it cannot be loaded or used."""
    ensure_torchvision_ops()
    from transformers import AutoConfig, AutoModel, AutoVideoProcessor

    with quiet_loading():
        config = AutoConfig.from_pretrained(path)
        kind = ENCODERS.get(config.model_type)
        if kind is None:
            raise ConfigError(
                f"metok inspect reads checkpoints of {', '.join(ENCODERS)}; got "
                f"{config.model_type!r}",
                "model",
            )
        # With no decoder layers, their weights in the checkpoint are not read.
        config.text_config.num_hidden_layers = 0
        config.text_config.layer_types = []
        processor = AutoVideoProcessor.from_pretrained(path)
        model, info = AutoModel.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
    require_all_weights(info)
    return kind(model.eval(), processor)
