"""Vision and alignment features of one video.

Frames pass the vision tower once, in chunks. Only the pooled tokens, frame means and image
embeddings of a chunk are kept, so memory is bounded by one chunk and the pooled video. With a
feature cache, the next question about the video needs neither tower.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation, renormalise
from metok_vllm.config import METokConfig
from metok_vllm.devices import tensor_on
from metok_vllm.kernels.adaptive_pool import pool_frames
from metok_vllm.models.feature_cache import FeatureCache, VideoFeatures
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layout import VideoLayout


class VideoFeatureEncoder:
    """The vision tower of a video model, given as two functions, and the alignment towers.

    `see` maps pixels [T, C, H, W] to patch features [T, P, vision width]; `project` maps those to
    the decoder's width [T, P, D]. A `video` is the layout of what is encoded. The laps of a `watch`
    are the time of towers and projector.
    """

    def __init__(
        self,
        config: METokConfig,
        see: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        pixels: Normalisation,
        towers: AlignmentTowers | None,
    ) -> None:
        self.see = see
        self.project = project
        self.pixels = pixels
        self.towers = towers
        self.shared = config.alignment_mode == "shared"
        self.chunk_frames = config.encoder_chunk_frames
        self.cache = FeatureCache(config.feature_cache_bytes)

    def embed_query(self, request: EncodeRequest, watch: Stopwatch) -> Tensor | None:
        """Text embedding [D] of the question; None without one or without towers."""
        if self.towers is None or not request.query_ids:
            return None
        ids_WL = tensor_on(request.query_ids, self.towers.device)
        with watch.lap():
            return self.towers.embed_text(ids_WL)

    def at_once(self, pixels_TCHW: Tensor, request: EncodeRequest) -> bool:
        """Whether all patches of the video fit one chunk and its features go into no cache."""
        return len(pixels_TCHW) <= self.chunk_frames and not self.cache.takes(request.content)

    def features(
        self,
        pixels_TCHW: Tensor,
        video: VideoLayout,
        strides: Sequence[int],
        images: bool,
        request: EncodeRequest,
        watch: Stopwatch,
    ) -> tuple[VideoFeatures, bool | None]:
        """Features at these strides, with image embeddings if `images`, and whether they came from
        the feature cache (None without one)."""
        if not self.cache.takes(request.content):
            return self.compute(pixels_TCHW, video, strides, images, watch)[0], None
        found = self.cache.find(request.content, video, strides, images)
        if found is not None:
            return found, True
        features, _ = self.compute(pixels_TCHW, video, strides, images, watch)
        self.cache.keep(request.content, video, features)
        return features, False

    def compute(
        self,
        pixels_TCHW: Tensor,
        video: VideoLayout,
        strides: Sequence[int],
        images: bool,
        watch: Stopwatch,
    ) -> tuple[VideoFeatures, Tensor]:
        """Features computed by the towers, and the last chunk's patches [T, P, D]."""
        means, embedded = [], []
        pooled: dict[int, list[Tensor]] = {stride: [] for stride in strides}
        for chunk_TCHW in pixels_TCHW.split(self.chunk_frames):
            with watch.lap():
                seen_TPD = self.see(chunk_TCHW)
                if images:
                    embedded.append(self._embed_images(chunk_TCHW, seen_TPD))
                x_TPD = self.project(seen_TPD)
            means.append(x_TPD.mean(1, dtype=torch.float32))
            for stride, parts in pooled.items():
                step = video.feature_stride(stride)
                parts.append(pool_frames(x_TPD, video.grid, step, video.pooling))
        features = VideoFeatures(
            torch.cat(means),
            torch.cat(embedded) if images else None,
            {stride: tuple(parts) for stride, parts in pooled.items()},
        )
        return features, x_TPD

    def _embed_images(self, chunk_TCHW: Tensor, seen_TPD: Tensor) -> Tensor:
        assert self.towers is not None
        if self.shared:
            return self.towers.embed_features(seen_TPD)
        return self.towers.embed_frames(
            renormalise(chunk_TCHW, self.pixels, self.towers.normalisation)
        )
