"""The model to calibrate: a video checkpoint in Hugging Face, and its prompts.

Weights, processor and chat template are the checkpoint's. Frames come from the server's reader,
visual tokens and events from the server's encoder (`metok_vllm.models.stage1`).

Shape suffixes: T frames, P patches, D features, N tokens, W encoder channels, L deepstack levels, X
rotary axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, encode_query, text_window
from metok_vllm.benchmarks.calibration.decoder import Decoder
from metok_vllm.benchmarks.calibration.llava_videos import LlavaVideos
from metok_vllm.benchmarks.calibration.qwen_videos import QwenVideos
from metok_vllm.benchmarks.calibration.setting import Prompt
from metok_vllm.benchmarks.calibration.videos import VideoFamily
from metok_vllm.config import METokConfig
from metok_vllm.config.families import QWEN2_5_VL, STATEFUL
from metok_vllm.engine.model_checks import check_hf_config
from metok_vllm.errors import ConfigError
from metok_vllm.hf_loading import quiet_loading, require_all_weights
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.families import deepstack_levels
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.pruning import TokenEvents
from metok_vllm.torch_shims import ensure_torchvision_ops
from metok_vllm.video import VideoFrames

FAMILIES: dict[str, type[VideoFamily]] = {
    "llava_onevision": LlavaVideos,
    QWEN2_5_VL: QwenVideos,
    "qwen3_vl": QwenVideos,
    "qwen3_vl_moe": QwenVideos,
}
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
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        with quiet_loading():
            hf_config = AutoConfig.from_pretrained(path)
            _check_family(hf_config.model_type)
            check_hf_config(config, hf_config)
            processor = AutoProcessor.from_pretrained(path)
            model, info = AutoModelForImageTextToText.from_pretrained(
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

    @cached_property
    def videos(self) -> VideoFamily:
        """How this model takes videos."""
        return FAMILIES[self.model.config.model_type](self.model, self.processor)

    @property
    def text_config(self) -> Any:
        return self.model.config.text_config

    @property
    def first_boundary(self) -> int:
        """The lowest layer that the engine accepts as a pruning layer."""
        return max(deepstack_levels(self.model.config), 1)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found = self.model.generation_config.eos_token_id
        return frozenset([found] if isinstance(found, int) else found or [])

    def prompt(self, frames: VideoFrames, question: str, stages: tuple[int, ...]) -> Prompt:
        """The chat prompt with the video's tokens, encoded for `stages`. Raises MediaError."""
        given = self.videos.read(frames)
        request = EncodeRequest(KEY, self.config.updated({"stages": stages}), self._query(question))
        encoded_NW = self.encoder.encode(
            given.pixels,
            self.videos.newline(),
            request,
            given.layout,
            self.videos.separators(given.layout),
            given.positions,
        )
        events = self.encoder.token_events(KEY)
        assert events is not None
        return self.prompt_of(question, encoded_NW, events, given.layout, stages)

    def prompt_of(
        self,
        question: str,
        encoded_NW: Tensor,
        events: TokenEvents,
        video: VideoLayout,
        stages: tuple[int, ...],
    ) -> Prompt:
        """The chat prompt with these rows of the encoder in place of the video."""
        ids = self._ids(question)
        start = ids.index(self.model.config.video_token_id)
        before, after = self.decoder.embed(ids[:start]), self.decoder.embed(ids[start + 1 :])
        rows = self.videos.rows(encoded_NW, video)
        embeds_ND = torch.cat([before, rows.visual_ND.to(before.dtype), after])
        first_N, last_N = (
            torch.arange(count, device=embeds_ND.device) + at
            for count, at in ((start, 0), (len(after), start + rows.span))
        )
        offset_XN = rows.offset_NX.T
        axes = len(offset_XN)
        position_XN = torch.cat(
            [first_N.expand(axes, -1), start + offset_XN, last_N.expand(axes, -1)], dim=1
        )
        # Nothing joins the text.
        deepstack_LND = F.pad(rows.deepstack_LND.to(before.dtype), (0, 0, start, len(after)))
        tokens = len(rows.visual_ND)
        return Prompt(embeds_ND, position_XN, deepstack_LND, start, tokens, video, events, stages)

    @cached_property
    def encoder(self) -> Stage1Encoder:
        """The server's encoder on this model's own vision tower."""
        return self.videos.encoder(self.config, self.towers)

    def _ids(self, question: str) -> list[int]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        # Of a published checkpoint, the tokenizer alone may have a template.
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.processor.tokenizer(text)["input_ids"]
        count = ids.count(self.model.config.video_token_id)
        if count != 1:
            raise ConfigError(
                f"the chat template must place one video, it placed {count} in {text[:200]!r}",
                "model",
            )
        return list(ids)

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


def _check_family(kind: str) -> None:
    if kind in STATEFUL:
        raise ConfigError(
            f"metok calibrate has no layers to find for {kind!r}: stages 2 and 3 drop tokens "
            "between decoder layers, and its linear-attention layers hold a state, not tokens. "
            "Stage 1 needs no calibration",
            "model",
        )
    if kind not in FAMILIES:
        raise ConfigError(
            "metok calibrate supports LLaVA-OneVision, Qwen2.5-VL and Qwen3-VL in the layout of "
            f"Hugging Face ({', '.join(FAMILIES)}), got {kind!r}",
            "model",
        )
