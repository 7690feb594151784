"""Frame features of Qwen2.5-VL and Qwen3-VL, for `metok inspect`.

A frame is a temporal patch of two sampled frames; the tower merges patches and returns the
decoder's width.

Shape suffixes: T temporal patches, P merged patches, X pixels of a patch, C channels, H height, W
width, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metok_vllm.errors import ConfigError
from metok_vllm.models.qwen_pixels import PatchOrder
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.server.inspect.frame_features import FrameEncoder


class QwenFrameEncoder(FrameEncoder):
    """The tower of a Qwen checkpoint, and optional alignment towers of their own."""

    @property
    def side(self) -> int:
        """Frames keep their shape; no alignment tower has this side."""
        return 0

    def add_towers(self, path: str, shared: bool = False) -> None:
        """Load alignment towers. Raises ConfigError for `shared`: no tower has a head for these
        features."""
        if shared:
            raise ConfigError(
                "metok.alignment_mode 'shared' needs a vision tower whose head an alignment model "
                f"has; {self.model.config.model_type} has none: use 'separate'",
                "alignment_mode",
            )
        super().add_towers(path)

    def prepare(
        self,
        frames_THWC: NDArray[np.uint8],
        chunk_frames: int,
        times_s: Sequence[float] | None,
    ) -> tuple[VideoLayout, Iterable[Tensor]]:
        """The layout of the video and its pixels in chunks, [T, patches, X] each.

        All frames are resized together: their size depends on their number.
        """
        frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        made = self.processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
        ((patches, rows, columns),) = made["video_grid_thw"].tolist()
        side = int(self.model.config.vision_config.patch_size)
        size = (rows * side, columns * side)
        video = video_layout(self.model.config, len(frames), size, times_s)
        assert video.frames == patches
        pixels_TPX = made["pixel_values_videos"].view(patches, rows * columns, -1)
        return video, pixels_TPX.split(max(chunk_frames // video.sampled_frames, 1))

    def see(self, pixels_TPX: Tensor, video: VideoLayout) -> Tensor:
        """Merged features [T, P, D]."""
        patches = len(pixels_TPX)
        grid = torch.tensor([[patches, video.rows * video.unit, video.columns * video.unit]])
        (features_ND,) = self.model.get_video_features(pixels_TPX.flatten(0, 1), grid).pooler_output
        features_TPD: Tensor = features_ND.view(patches, video.rows * video.columns, -1)
        return features_TPD

    def project(self, patches_TPD: Tensor) -> Tensor:
        """The tower's merger has done this."""
        return patches_TPD

    def picture(self, pixels_TPX: Tensor, video: VideoLayout) -> Tensor:
        """The first sampled frame [T, C, H, W] of each temporal patch."""
        order = PatchOrder.of(self.model.config.vision_config)
        return order.pictures(pixels_TPX, video.grid)[:, 0]
