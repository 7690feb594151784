"""Videos of Qwen2.5-VL, Qwen3-VL and its mixture of experts in the published layout.

Positions follow vLLM's rule (`get_mrope_input_positions` of qwen2_5_vl.py and qwen3_vl.py, version
0.32): transformers 5.19 has another one for Qwen2.5-VL's videos.

Shape suffixes: T temporal patches, P merged patches, V pixels of a patch, S separators, D features,
W encoder channels, N tokens, L deepstack levels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers
from metok_vllm.benchmarks.calibration.videos import VideoFamily, VideoInput, VideoRows
from metok_vllm.config import METokConfig
from metok_vllm.config.families import TIMESTAMPED
from metok_vllm.errors import MediaError
from metok_vllm.models.positions import AXES, MAX_SPAN, VideoPositions, from_channels
from metok_vllm.models.qwen_pixels import PatchOrder
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.families import deepstack_levels, patch_layout, patch_times
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.video import VideoFrames


class QwenVideos(VideoFamily):
    """Temporal patches of two sampled frames; between timestamps from Qwen3-VL on."""

    def read(self, frames: VideoFrames) -> VideoInput:
        from transformers.video_utils import VideoMetadata

        config, vision = self.model.config, self.model.config.vision_config
        timestamped = config.model_type in TIMESTAMPED
        if timestamped and len(frames.indices) < vision.temporal_patch_size:
            raise MediaError(f"{vision.temporal_patch_size} frames or more are needed, got 1")
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames.frames_THWC))
        metadata = VideoMetadata(
            total_num_frames=frames.total_frames,
            fps=frames.fps,
            duration=frames.duration_s,
            frames_indices=list(frames.indices),
        )
        made = self.processor.video_processor(
            videos=[frames_TCHW.permute(0, 3, 1, 2)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        ((patches, rows, columns),) = made["video_grid_thw"].tolist()
        merge = int(vision.spatial_merge_size)
        layout = patch_layout(vision, patches, rows // merge, columns // merge)
        if timestamped:
            layout = self._with_times(layout, [index / frames.fps for index in frames.indices])
            layout, positions = timestamped_positions(layout)
        else:
            # vLLM holds these seconds in float32; a time is rounded down.
            seconds = float(np.float32(layout.sampled_frames / metadata.sampled_fps))
            layout, positions = timed_positions(
                layout, seconds * getattr(vision, "tokens_per_second", 1.0)
            )
        if layout.positions > MAX_SPAN:
            raise MediaError(
                f"the video has {layout.positions} rotary positions; METok takes at most {MAX_SPAN}"
            )
        pixels_TPV = made["pixel_values_videos"].view(patches, rows * columns, -1)
        return VideoInput(pixels_TPV.to(self.model.device, self.model.dtype), layout, positions)

    def encoder(self, config: METokConfig, towers: AlignmentTowers | None) -> Stage1Encoder:
        vision = self.model.config.vision_config
        order = PatchOrder.of(vision)
        normalisation = self.normalisation(vision.patch_size * vision.spatial_merge_size)
        return Stage1Encoder(
            config,
            self.features,
            lambda features_TPW: features_TPW,
            normalisation,
            towers,
            picture=lambda pixels, video: order.pictures(pixels, video.grid)[:, 0],
            width=int(vision.out_hidden_size),
            resize=lambda pixels, video, target: order.resized(
                pixels, video.grid, target.grid, normalisation
            ),
        )

    def features(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        """Merged features [T, P, W] of the tower, those of its further depths behind them."""
        grid = [len(pixels), video.rows * video.unit, video.columns * video.unit]
        seen = self.model.model.get_video_features(
            pixels.flatten(0, 1), torch.tensor([grid], device=pixels.device)
        )
        deeper = getattr(seen, "deepstack_features", None) or []
        parts = [torch.cat(tuple(level)) for level in (seen.pooler_output, *deeper)]
        return torch.cat(parts, dim=-1).view(len(pixels), video.rows * video.columns, -1)

    def separators(self, video: VideoLayout) -> Tensor | None:
        if not video.separators:
            return None
        around = zip(video.before, video.after, strict=True)
        ids = [token for before, after in around for token in (*before, *after)]
        text_SD = self.model.get_input_embeddings()(torch.tensor(ids, device=self.model.device))
        # Deepstack adds nothing to text.
        return F.pad(text_SD, (0, self._levels * text_SD.shape[1]))

    def rows(self, encoded_NW: Tensor, video: VideoLayout) -> VideoRows:
        features_NW, channel_N6 = encoded_NW[:, : -2 * AXES], encoded_NW[:, -2 * AXES :]
        levels = features_NW.unflatten(1, (1 + self._levels, -1)).transpose(0, 1)
        return VideoRows(levels[0], levels[1:], from_channels(channel_N6), video.positions)

    @property
    def _levels(self) -> int:
        return deepstack_levels(self.model.config)

    def _with_times(self, video: VideoLayout, times_s: list[float]) -> VideoLayout:
        """The time of each temporal patch in front of it, as vLLM's `get_video_repl` writes it."""
        config, tokenizer = self.model.config, self.processor.tokenizer
        before = tuple(
            (
                *tokenizer.encode(f"<{seconds:.1f} seconds>", add_special_tokens=False),
                config.vision_start_token_id,
            )
            for seconds in patch_times(times_s, video.sampled_frames)
        )
        return replace(video, before=before, after=((config.vision_end_token_id,),) * video.frames)


def timed_positions(video: VideoLayout, step: float) -> tuple[VideoLayout, VideoPositions]:
    """Qwen2.5-VL: one grid, whose time advances by `step` positions a temporal patch."""
    time_T = (np.arange(video.frames) * step).astype(np.int64)
    rows, columns = (np.arange(side) for side in video.grid)
    axes = np.meshgrid(time_T, rows, columns, indexing="ij")
    feature_TP3 = torch.from_numpy(np.stack(axes, axis=-1)).flatten(1, 2)
    span = int(feature_TP3.max()) + 1
    none_S3 = torch.zeros(0, AXES, dtype=torch.int64)
    return replace(video, positions=span), VideoPositions(feature_TP3, none_S3)


def timestamped_positions(video: VideoLayout) -> tuple[VideoLayout, VideoPositions]:
    """Qwen3-VL: each temporal patch is a grid of its own; its text counts on around it."""
    rows, columns = video.grid
    row_P, column_P = (
        torch.arange(rows * columns) // columns,
        torch.arange(rows * columns) % columns,
    )
    place_P3 = torch.stack([torch.zeros_like(row_P), row_P, column_P], dim=1)
    features: list[Tensor] = []
    text: list[int] = []
    following = 0
    for before, after in zip(video.before, video.after, strict=True):
        text += range(following, following + len(before))
        following += len(before)
        features.append(following + place_P3)
        following += max(video.grid)
        text += range(following, following + len(after))
        following += len(after)
    separator_S3 = torch.tensor(text)[:, None].expand(-1, AXES).contiguous()
    positions = VideoPositions(torch.stack(features), separator_S3)
    return replace(video, positions=following), positions
