"""The model to calibrate: a LLaVA-OneVision checkpoint in Hugging Face, and its prompts.

Weights, processor and chat template are the checkpoint's. Frames come from the server's reader,
visual tokens and events from the server's encoder (`metok_vllm.models.stage1`).

Shape suffixes: T frames, C channels, H height, W width, P patches, D features, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation, encode_query, text_window
from metok_vllm.benchmarks.calibration.decoder import Decoder
from metok_vllm.benchmarks.calibration.setting import Prompt
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.hf_loading import quiet_loading, require_all_weights
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.pruning import TokenEvents
from metok_vllm.torch_shims import ensure_torchvision_ops

FAMILY = "llava_onevision"
KEY = "calibrated"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class CalibratedModel:
    """Model, processor, and the configuration that the server would start with."""

    model: Any
    processor: Any
    config: METokConfig
    towers: AlignmentTowers | None = None

    @classmethod
    def load(
        cls, path: str, config: METokConfig, device: str = "cpu", dtype: str = "float32"
    ) -> CalibratedModel:
        """From a folder or hub name. Raises ConfigError if it cannot be loaded or used."""
        ensure_torchvision_ops()
        from transformers import AutoConfig, AutoProcessor, LlavaOnevisionForConditionalGeneration

        with quiet_loading():
            kind = AutoConfig.from_pretrained(path).model_type
            if kind != FAMILY:
                raise ConfigError(
                    f"metok calibrate supports LLaVA-OneVision ({FAMILY}), got {kind!r}", "model"
                )
            processor = AutoProcessor.from_pretrained(path)
            model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
                path, dtype=DTYPES[dtype], output_loading_info=True
            )
        require_all_weights(info)
        towers = None
        if config.alignment_model is not None and config.alignment_mode != "none":
            towers = AlignmentTowers.load(config.alignment_model, device, DTYPES[dtype])
            if config.alignment_mode == "shared":
                towers.share_vision(model.config)
        return cls(model.to(device).eval().requires_grad_(False), processor, config, towers)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder that runs layer by layer."""
        return Decoder(self.model)

    @property
    def text_config(self) -> Any:
        return self.model.config.text_config

    def video(self, frames: int) -> VideoLayout:
        """The layout of a video."""
        return video_layout(self.model.config, frames)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found = self.model.generation_config.eos_token_id
        return frozenset([found] if isinstance(found, int) else found or [])

    def prompt(
        self, frames_THWC: NDArray[np.uint8], question: str, stages: tuple[int, ...]
    ) -> Prompt:
        """The chat prompt with the video's tokens, encoded for `stages`."""
        pixels_TCHW = self._pixels(frames_THWC)
        request = EncodeRequest(KEY, self.config.updated({"stages": stages}), self._query(question))
        video = self.video(len(pixels_TCHW))
        newline_D = self.model.model.image_newline
        visual_ND = self.encoder.encode(pixels_TCHW, newline_D, request, video)
        events = self.encoder.token_events(KEY)
        assert events is not None
        return self.prompt_of(question, visual_ND, events, video, stages)

    def prompt_of(
        self,
        question: str,
        visual_ND: Tensor,
        events: TokenEvents,
        video: VideoLayout,
        stages: tuple[int, ...],
    ) -> Prompt:
        """The chat prompt with these visual tokens in place of the video."""
        ids = self._ids(question)
        start = ids.index(self.model.config.video_token_id)
        before, after = self.decoder.embed(ids[:start]), self.decoder.embed(ids[start + 1 :])
        embeds_ND = torch.cat([before, visual_ND.to(before.dtype), after])
        return Prompt(embeds_ND, start, len(visual_ND), video, events, stages)

    def features(self, frames_THWC: NDArray[np.uint8]) -> Tensor:
        """Patch features in the decoder's width, [T, P, D], before any pooling."""
        vision_TPD = self._vision(self._pixels(frames_THWC))
        features_TPD: Tensor = self.model.model.multi_modal_projector(vision_TPD)
        return features_TPD

    @cached_property
    def encoder(self) -> Stage1Encoder:
        """The server's encoder on this model's own vision tower and projector."""
        video = self.processor.video_processor
        size = self.model.config.vision_config.image_size
        pixels = Normalisation.of(video.image_mean, video.image_std, size)
        project = self.model.model.multi_modal_projector
        return Stage1Encoder(
            self.config, lambda x, _: self._vision(x), project, pixels, self.towers
        )

    def _ids(self, question: str) -> list[int]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self.processor.tokenizer(text)["input_ids"]
        count = ids.count(self.model.config.video_token_id)
        if count != 1:
            raise ConfigError(
                f"the chat template must place one video, it placed {count} in {text[:200]!r}",
                "model",
            )
        return list(ids)

    def _pixels(self, frames_THWC: NDArray[np.uint8]) -> Tensor:
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        pixels: Tensor = self.processor.video_processor(
            videos=[frames_TCHW], do_sample_frames=False, return_tensors="pt"
        )["pixel_values_videos"][0]
        return pixels.to(self.model.device, self.model.dtype)

    def _vision(self, pixels_TCHW: Tensor) -> Tensor:
        """Patch features before the projector, [T, P, vision width]."""
        config = self.model.config
        tower = self.model.model.vision_tower
        hidden = tower(pixels_TCHW, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        vision_TPD = torch.cat([hidden[layer] for layer in layers], dim=-1)
        has_class_token = config.vision_feature_select_strategy == "default"
        return vision_TPD[:, 1:] if has_class_token else vision_TPD

    def _query(self, question: str) -> tuple[tuple[int, ...], ...]:
        if self.towers is None:
            return ()
        tokenizer, window = self._query_tokenizer
        return tuple(
            tuple(row) for row in encode_query(tokenizer, question, length=window).tolist()
        )

    @cached_property
    def _query_tokenizer(self) -> tuple[Any, int]:
        from transformers import AutoTokenizer

        assert self.config.alignment_model is not None
        path = self.config.alignment_model
        return AutoTokenizer.from_pretrained(path), text_window(path)
