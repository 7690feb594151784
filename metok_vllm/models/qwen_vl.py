"""What the video models Qwen2.5-VL and Qwen3-VL share with METok.

Their tower attends within a temporal patch (two sampled frames) and merges patches itself, so a
chunk of temporal patches is encoded alone, and what it returns is the decoder's input.
Source of what is overridden: vllm/model_executor/models/qwen2_5_vl.py and qwen3_vl.py, version
0.32; the order of patches is that of transformers' Qwen2VLVideoProcessor.

Shape suffixes: T temporal patches, P features of one, S sampled frames of one or separators, C
channels, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.transformers_utils.processor import cached_get_video_processor

from metok_vllm.alignment import Normalisation
from metok_vllm.devices import tensor_on
from metok_vllm.models.family import EncoderVideo, MetokModel
from metok_vllm.models.mrope import MropeModel
from metok_vllm.models.positions import VideoPositions
from metok_vllm.models.qwen_pixels import PatchOrder
from metok_vllm.plan.layout import VideoLayout

PIXELS, GRID, SECONDS = "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"


class MetokQwenVL(MropeModel, MetokModel):
    """Mixed in before vLLM's class of a Qwen video model with a tower `visual`."""

    visual: Any
    _process_video_input: Any
    pixels_field = PIXELS

    @property
    def feature_width(self) -> int:
        return int(self.visual.out_hidden_size)

    @cached_property
    def patch_order(self) -> PatchOrder:
        """How the processor orders pixels."""
        return PatchOrder.of(self.config.vision_config)

    @property
    def event_width(self) -> int:  # type: ignore[override]
        return int(self.config.vision_config.out_hidden_size)

    def see(self, pixels: Tensor, video: VideoLayout | None = None) -> Tensor:
        """Merged features [T, P, D] of temporal patches [T, patches, pixels of a patch]."""
        assert video is not None
        frames = len(pixels)
        grid = [frames, video.rows * video.unit, video.columns * video.unit]
        inputs = {"type": PIXELS, PIXELS: pixels.flatten(0, 1), GRID: torch.tensor([grid])}
        (features_ND,) = self._process_video_input(inputs)
        features_TPD: Tensor = features_ND.view(frames, video.rows * video.columns, -1)
        return features_TPD

    def project(self, features_TPD: Tensor) -> Tensor:
        return features_TPD

    def newline(self) -> None:
        return None

    def vision_weight(self) -> Tensor:
        weight: Tensor = self.visual.patch_embed.proj.weight
        return weight

    def video_normalisation(self) -> Normalisation:
        vision = self.config.vision_config
        size = vision.patch_size * vision.spatial_merge_size
        if self.model_config.multimodal_config.mm_device_do_normalize:
            # The tower normalises: pictures are bytes from 0 to 255.
            return Normalisation.of([0.0] * 3, [1 / 255] * 3, size)
        processor = cached_get_video_processor(
            self.model_config.model, revision=self.model_config.revision
        )
        return Normalisation.of(processor.image_mean, processor.image_std, size)

    def picture(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        """The first sampled frame [T, C, H, W] of each temporal patch."""
        picture_TSCHW = self.patch_order.pictures(pixels, video.grid)
        return picture_TSCHW[:, 0].to(self.visual.dtype)

    def resize(self, pixels: Tensor, video: VideoLayout, target: VideoLayout) -> Tensor:
        """Pixels of the same frames in the grid of another layout."""
        order, normalisation = self.patch_order, self.video_normalisation()
        return order.resized(pixels, video.grid, target.grid, normalisation)

    def encoder_videos(self, fields: Mapping[str, Any]) -> list[EncoderVideo]:
        grids: Tensor = fields[GRID]
        sizes = grids.prod(-1).tolist()
        names = [name for name in (GRID, SECONDS) if fields.get(name) is not None]
        return [
            EncoderVideo(
                pixels.view(int(grids[i][0]), -1, pixels.shape[-1]),
                {name: fields[name][i] for name in names},
            )
            for i, pixels in enumerate(fields[PIXELS].split(sizes))
        ]

    def embed_dense(self, videos: Sequence[EncoderVideo]) -> Sequence[Tensor]:
        pixels = torch.cat([video.pixels.flatten(0, 1) for video in videos])
        grids = torch.stack([video.fields[GRID] for video in videos])
        embedded: Sequence[Tensor]
        embedded = self._process_video_input({"type": PIXELS, PIXELS: pixels, GRID: grids})
        return embedded

    def separators(self, video: VideoLayout) -> Tensor | None:
        if not video.separators:
            return None
        ids = [
            token
            for before, after in zip(video.before, video.after, strict=True)
            for token in (*before, *after)
        ]
        text_SD = self.language_model.embed_input_ids(tensor_on(ids, self.visual.device))
        # Deepstack adds nothing to text.
        missing = self.feature_width - text_SD.shape[1]
        return torch.nn.functional.pad(text_SD, (0, missing))

    def video_positions(
        self, video: VideoLayout, fields: Mapping[str, Any]
    ) -> VideoPositions | None:
        return self.dense_positions(video, fields)

    def get_encoder_cudagraph_config(self) -> Any:
        """As vLLM's without videos: its graphs would run in place of `embed_multimodal`."""
        config = super().get_encoder_cudagraph_config()
        config.modalities = [name for name in config.modalities if name != "video"]
        return config

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As vLLM's; tokens of METok's videos move to their own positions first."""
        self.add_offsets(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
