"""Vision and alignment features of one video.

Frames pass the vision tower once, in chunks. Only the reduced tokens, frame means and image
embeddings of a chunk are kept, so memory is bounded by one chunk and the reduced video. With a
feature cache, the next question about the video needs neither tower.

With the reduction `resize` frames are told apart before the tower sees them, each at the resolution
of its class. What the tower sees then depends on the question, so it goes into no cache.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, F frames of a class,
R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation, renormalise
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL
from metok_vllm.devices import tensor_on
from metok_vllm.models.feature_cache import FeatureCache, VideoFeatures
from metok_vllm.models.reducing import reduce_frames
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.resizing import centred, thumbnails
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layout import VideoLayout

See = Callable[[Tensor, VideoLayout], Tensor]
Resize = Callable[[Tensor, VideoLayout, VideoLayout], Tensor]


class VideoFeatureEncoder:
    """The vision tower of a video model, given as functions, and the alignment towers.

    `see` maps the pixels of T frames and the video's layout to patch features [T, P, vision width];
    `project` maps those to the decoder's input [T, P, D]. `picture` makes pictures [T, C, H, W]
    for the alignment towers of the same pixels. `resize` makes pixels of one layout those of
    another; None for towers of one resolution. Events are found in the first `width` of the D
    features (None: all). A `video` is the layout of what is encoded. The laps of a `watch` are the
    time of towers and projector.
    """

    def __init__(
        self,
        config: METokConfig,
        see: See,
        project: Callable[[Tensor], Tensor],
        pixels: Normalisation,
        towers: AlignmentTowers | None,
        picture: See | None = None,
        width: int | None = None,
        resize: Resize | None = None,
    ) -> None:
        self.see = see
        self.resize = resize
        self.project = project
        self.picture = picture
        self.width = width
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

    def frames_at_once(self, video: VideoLayout) -> int:
        """Frames of the layout that pass the tower together."""
        return max(self.chunk_frames // video.sampled_frames, 1)

    def at_once(self, video: VideoLayout, request: EncodeRequest) -> bool:
        """Whether all patches of the video fit one chunk and its features go into no cache."""
        fits = video.frames <= self.frames_at_once(video)
        return fits and not self.cache.takes(request.content)

    def features(
        self,
        pixels: Tensor,
        video: VideoLayout,
        strides: Sequence[int],
        images: bool,
        request: EncodeRequest,
        watch: Stopwatch,
        reduction: str = POOL,
    ) -> tuple[VideoFeatures, bool | None]:
        """Features at these strides, with image embeddings if `images`, and whether they came from
        the feature cache (None without one). `reduction` makes a frame's tokens fewer."""
        if not self.cache.takes(request.content):
            return self.compute(pixels, video, strides, images, watch, reduction)[0], None
        found = self.cache.find(request.content, video, strides, images, reduction)
        if found is not None:
            return found, True
        features, _ = self.compute(pixels, video, strides, images, watch, reduction)
        self.cache.keep(request.content, video, features)
        return features, False

    def compute(
        self,
        pixels: Tensor,
        video: VideoLayout,
        strides: Sequence[int],
        images: bool,
        watch: Stopwatch,
        reduction: str = POOL,
    ) -> tuple[VideoFeatures, Tensor]:
        """Features computed by the towers, and the last chunk's patches [T, P, D]."""
        means, embedded = [], []
        pooled: dict[int, list[Tensor]] = {stride: [] for stride in strides}
        places: dict[int, list[Tensor]] = {stride: [] for stride in strides}
        for chunk in pixels.split(self.frames_at_once(video)):
            with watch.lap():
                seen_TPD = self.see(chunk, video)
                if images:
                    embedded.append(self._embed_images(chunk, seen_TPD, video))
                x_TPD = self.project(seen_TPD)
            means.append(x_TPD[..., : self.width].mean(1, dtype=torch.float32))
            reduced = reduce_frames(x_TPD, video, list(pooled), reduction, self.width)
            for stride, (kept_TKD, place_TK) in zip(pooled, reduced, strict=True):
                pooled[stride].append(kept_TKD)
                if place_TK is not None:
                    places[stride].append(place_TK)
        features = VideoFeatures(
            torch.cat(means),
            torch.cat(embedded) if images else None,
            {stride: tuple(parts) for stride, parts in pooled.items()},
            reduction,
            {stride: tuple(parts) for stride, parts in places.items() if parts},
        )
        return features, x_TPD

    def frames_unseen(self, pixels: Tensor, video: VideoLayout, watch: Stopwatch) -> Tensor:
        """What frames look like without the vision tower, [T, D]: image embeddings where there are
        alignment towers, else centred thumbnails."""
        parts = []
        for chunk in pixels.split(self.frames_at_once(video)):
            if self.towers is None:
                parts.append(thumbnails(self._pictures(chunk, video), self.pixels))
            else:
                with watch.lap():
                    parts.append(self._embed_pictures(chunk, video))
        return centred(torch.cat(parts)) if self.towers is None else torch.cat(parts)

    def see_resized(
        self,
        pixels: Tensor,
        video: VideoLayout,
        frames: Sequence[Tensor],
        strides: Sequence[int],
        watch: Stopwatch,
    ) -> Tensor:
        """Rows [R, D] of the decoder's input: `frames` of each class int64 [F], at its stride.

        A chunk has at most as many patches as one of whole frames.
        """
        assert self.resize is not None
        rows = []
        for frame_F, stride in zip(frames, strides, strict=True):
            target, at_once = video.at(stride), self.frames_at_once(video)
            smaller = video.rows * video.columns // (target.rows * target.columns)
            for chunk_F in frame_F.split(at_once * smaller) if len(frame_F) else ():
                parts = [pixels.index_select(0, part_F) for part_F in chunk_F.split(at_once)]
                if target.grid != video.grid:
                    parts = [self.resize(part, video, target) for part in parts]
                with watch.lap():
                    rows.append(self.project(self.see(torch.cat(parts), target)).flatten(0, 1))
        return torch.cat(rows)

    def _embed_images(self, chunk: Tensor, seen_TPD: Tensor, video: VideoLayout) -> Tensor:
        assert self.towers is not None
        if self.shared:
            return self.towers.embed_features(seen_TPD)
        return self._embed_pictures(chunk, video)

    def _embed_pictures(self, chunk: Tensor, video: VideoLayout) -> Tensor:
        assert self.towers is not None
        picture_TCHW = self._pictures(chunk, video)
        return self.towers.embed_frames(
            renormalise(picture_TCHW, self.pixels, self.towers.normalisation)
        )

    def _pictures(self, chunk: Tensor, video: VideoLayout) -> Tensor:
        return chunk if self.picture is None else self.picture(chunk, video)
