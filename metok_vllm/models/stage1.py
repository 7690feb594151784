"""Stage 1 in the encoder: one video's frames in, packed visual tokens out.

Frames go through the vision tower once, in chunks; of a chunk only its pooled tokens, its frame
means and its image embeddings stay, so memory is bounded by `encoder_chunk_frames` and by the
pooled video, whatever its length. Nothing here waits for the device.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation, renormalise
from metok_vllm.budget import encoded_tokens
from metok_vllm.config import METokConfig
from metok_vllm.devices import tensor_on
from metok_vllm.events import EventMap, analyse
from metok_vllm.kernels.adaptive_pool import pack_index, pool_frames
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch

MAX_REMEMBERED = 1024


class Stage1Encoder:
    """Event-aware encoding for a video model given as two functions.

    `see` maps pixels [T, C, H, W] to patch features [T, P, vision width]; `project` maps those to
    the decoder's width [T, P, D], on a `grid` x `grid` layout.
    """

    def __init__(
        self,
        config: METokConfig,
        see: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        grid: int,
        pixels: Normalisation,
        towers: AlignmentTowers | None,
    ) -> None:
        self.config = config
        self.see = see
        self.project = project
        self.grid = grid
        self.pixels = pixels
        self.towers = towers
        self.remembered: OrderedDict[str, tuple[EventMap, Stopwatch | None]] = OrderedDict()

    def encode(self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest) -> Tensor:
        """Visual tokens [N1, D] of one video; the events stay readable under `request.key`."""
        watch = Stopwatch(pixels_TCHW.device)
        config = request.config
        text_D = self._embed_query(request)
        means, images = [], []
        pooled: tuple[list[Tensor], ...] = ([], [], [])
        for chunk_TCHW in pixels_TCHW.split(self.config.encoder_chunk_frames):
            seen_TPD = self.see(chunk_TCHW)
            if text_D is not None:
                images.append(self._embed_images(chunk_TCHW, seen_TPD))
            x_TPD = self.project(seen_TPD)
            means.append(x_TPD.mean(1, dtype=torch.float32))
            for tokens, stride in zip(pooled, config.strides, strict=True):
                tokens.append(pool_frames(x_TPD, self.grid, stride))
        relevance_T = None
        if text_D is not None:
            relevance_T = AlignmentTowers.relevance(torch.cat(images), text_D)
        events = analyse(torch.cat(means), relevance_T, config)
        sizes = (pooled[0][0].shape[1], pooled[1][0].shape[1], pooled[2][0].shape[1])
        total = encoded_tokens(pixels_TCHW.shape[0], self.grid, config)
        row_N, _ = pack_index(events.class_T, events.event_T, sizes, total)
        rows = [chunk.flatten(0, 1) for tokens in pooled for chunk in tokens]
        newline = newline_D[None].to(rows[0].dtype)
        tokens_ND = torch.cat([*rows, newline]).index_select(0, row_N)
        watch.stop()
        self._remember(request.key, events, watch)
        return tokens_ND

    def recall(self, key: str) -> dict[str, Any] | None:
        """What was decided about the video with this key, as plain lists, or None if forgotten.

        `seconds` is how long encoding it took, told once: a cached video costs nothing again.
        """
        if key not in self.remembered:
            return None
        events, watch = self.remembered[key]
        self.remembered[key] = events, None
        self.remembered.move_to_end(key)  # what is still asked about is forgotten last
        return {
            "seconds": None if watch is None else watch.seconds(),
            "event_of_frame": events.event_T.tolist(),
            "relevance_of_frame": events.relevance_T.tolist(),
            "class_of_frame": events.class_T.tolist(),
            "event_relevance": events.event_relevance_E.tolist(),
            "event_key": events.key_E.tolist(),
        }

    def _embed_query(self, request: EncodeRequest) -> Tensor | None:
        if self.towers is None or not request.query_ids:
            return None
        return self.towers.embed_text(tensor_on(request.query_ids, self.towers.device))

    def _embed_images(self, chunk_TCHW: Tensor, seen_TPD: Tensor) -> Tensor:
        assert self.towers is not None
        if self.config.alignment_mode == "shared":
            return self.towers.embed_features(seen_TPD)
        return self.towers.embed_frames(
            renormalise(chunk_TCHW, self.pixels, self.towers.normalisation)
        )

    def _remember(self, key: str, events: EventMap, watch: Stopwatch) -> None:
        # The encoder cache may serve a video long after it was encoded; its events must still be
        # there when the answer is written. Six small tensors a video.
        self.remembered[key] = events, watch
        self.remembered.move_to_end(key)
        while len(self.remembered) > MAX_REMEMBERED:
            self.remembered.popitem(last=False)
