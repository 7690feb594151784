"""Alignment towers: the relevance of each frame to a question.

A Hugging Face SigLIP or CLIP (image tower with head, text tower), loaded once per worker and shared
by all requests. Source of the method: METok, arXiv 2506.02850, section 3.1.

Shape suffixes: T frames, P patches, C channels, H height, W width or windows, L tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.alignment.pixels import Normalisation
from metok_vllm.errors import ConfigError

SIGLIP, CLIP = "siglip", "clip"
FAMILIES = (SIGLIP, CLIP)


class AlignmentTowers:
    """Image and text tower. Not an nn.Module, so its weights are not the video model's."""

    def __init__(self, model: Any, normalisation: Normalisation) -> None:
        self.model = model.eval().requires_grad_(False)
        self.normalisation = normalisation
        self.missing_layers: list[torch.nn.Module] = []

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @classmethod
    def load(
        cls, path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> AlignmentTowers:
        """From a folder or hub name. Raises ConfigError for anything but a SigLIP or CLIP."""
        from transformers import AutoImageProcessor, AutoModel

        config = load_config(path)
        processor = AutoImageProcessor.from_pretrained(path)
        model = AutoModel.from_pretrained(path, config=config, dtype=dtype).to(device)
        size = config.vision_config.image_size
        return cls(model, Normalisation.of(processor.image_mean, processor.image_std, size))

    @torch.inference_mode()
    def embed_text(self, ids_WL: Tensor) -> Tensor:
        """Text embedding [D]: the element-wise maximum over the query's windows [W, L]."""
        features_WD = _pooled(self.model.get_text_features(input_ids=ids_WL))
        return features_WD.amax(0)

    @torch.inference_mode()
    def embed_frames(self, pixels_TCHW: Tensor) -> Tensor:
        """Image embeddings [T, D] of frames in `self.normalisation`."""
        dtype = self.model.dtype
        return _pooled(self.model.get_image_features(pixel_values=pixels_TCHW.to(dtype)))

    @torch.inference_mode()
    def embed_features(self, features_TPD: Tensor) -> Tensor:
        """Image embeddings [T, D] from the video model's patch features, after `share_vision`.

        SigLIP pools with its head; CLIP reads its class token, the first of the features.
        """
        vision = self.model.vision_model
        x_TPD = features_TPD.to(self.model.dtype)
        for layer in self.missing_layers:
            x_TPD = layer(x_TPD, attention_mask=None)
            x_TPD = x_TPD[0] if isinstance(x_TPD, tuple) else x_TPD
        normed_TPD = vision.post_layernorm(x_TPD)
        if self.model.config.model_type == CLIP:
            embeddings_TD: Tensor = self.model.visual_projection(normed_TPD[:, 0])
        else:
            embeddings_TD = vision.head(normed_TPD)
        return embeddings_TD

    def share_vision(self, video_config: Any, class_token: bool = False) -> None:
        """Use the video model's vision tower in place of the image tower (mode `shared`).

        LLaVA-OneVision and LongVA run all layers of their tower but the last. The alignment model's
        own last layers run on top of them, and its remaining image layers are freed. `video_config`
        is the video model's configuration; with `class_token` its features start with one. Raises
        ConfigError where the towers do not match.
        """
        vision, own = self.model.vision_model, self.model.config.vision_config
        theirs, layer = video_config.vision_config, video_config.vision_feature_layer
        depth = _depth(layer, theirs.num_hidden_layers) if isinstance(layer, int) else None
        if (
            class_token != (self.model.config.model_type == CLIP)
            or not (class_token or getattr(vision, "head", None))
            or (own.model_type, own.hidden_size) != (theirs.model_type, theirs.hidden_size)
            or not (class_token or video_config.vision_feature_select_strategy == "full")
            or depth is None
            or depth > own.num_hidden_layers
        ):
            raise ConfigError(
                "metok.alignment_mode 'shared' needs an alignment model of the family and width "
                "of the video model's vision tower, and at least as deep; this is "
                f"{own.model_type} {own.hidden_size} wide with {own.num_hidden_layers} layers, the "
                f"video model has {theirs.model_type} {theirs.hidden_size} wide with {depth}. "
                "Use 'separate'.",
                "alignment_mode",
            )
        self.missing_layers = list(vision.encoder.layers[depth:])
        del vision.embeddings, vision.encoder

    @staticmethod
    def relevance(image_TD: Tensor, text_D: Tensor) -> Tensor:
        """r_t = cos(image embedding of frame t, text embedding), float32 [T]."""
        return F.cosine_similarity(image_TD.float(), text_D.float()[None], dim=-1)


def load_config(path: str) -> Any:
    """The alignment model's configuration. Raises ConfigError unless it is a SigLIP or CLIP."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"metok.alignment_model {path!r} cannot be loaded: {str(error).splitlines()[0]}",
            "alignment_model",
        ) from error
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"metok.alignment_model must be a SigLIP or CLIP with both towers, "
            f"got a {config.model_type!r}",
            "alignment_model",
        )
    return config


def text_window(path: str) -> int:
    """Tokens in one window of the text tower."""
    return int(load_config(path).text_config.max_position_embeddings)


def _pooled(output: Any) -> Tensor:
    # transformers 5 returns the output object, transformers 4 the embedding.
    return output if isinstance(output, Tensor) else output.pooler_output


def _depth(feature_layer: int, num_layers: int) -> int:
    """The number of layers that produce `hidden_states[feature_layer]`."""
    return feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
