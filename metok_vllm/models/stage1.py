"""Stage 1 in the encoder: one video's frames in, packed visual tokens out.

Without stage 1 the tokens are the model's own dense ones; events are found all the same, because
stage 2 selects inside them. A request may choose another rule in place of METok: that one is given
the dense tokens, and there are no events.

Frames go through the vision tower once, in chunks; of a chunk only its pooled tokens, its frame
means and its image embeddings stay, so memory is bounded by `encoder_chunk_frames` and by the
pooled video, whatever its length. Nothing here waits for the device.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation, renormalise
from metok_vllm.budget import DENSE_STRIDE, encoded_tokens, kept_tokens, pooled_length
from metok_vllm.config import METokConfig
from metok_vllm.devices import tensor_on, to_host
from metok_vllm.events import EventMap, analyse
from metok_vllm.kernels.adaptive_pool import adaptive_pool, pack_index, pool_frames
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.pruning import TokenEvents
from metok_vllm.rules import FASTV, METOK
from metok_vllm.rules.encoder import compress as compress_by_rule

LEAST_REMEMBERED = 1024


@dataclass(frozen=True)
class _Encoded:
    events: EventMap
    on_host: EventMap  # readable once the watch has passed its end
    watch: Stopwatch
    timed: bool
    config: METokConfig
    tokens: int


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
        max_remembered: int = LEAST_REMEMBERED,
    ) -> None:
        self.config = config
        self.see = see
        self.project = project
        self.grid = grid
        self.pixels = pixels
        self.towers = towers
        self.max_remembered = max(max_remembered, LEAST_REMEMBERED)
        self.remembered: OrderedDict[str, _Encoded] = OrderedDict()

    def encode(self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest) -> Tensor:
        """Visual tokens [N1, D] of one video; the events stay readable under `request.key`."""
        if request.config.rule != METOK:
            return self._encode_by_rule(pixels_TCHW, newline_D, request)
        watch = Stopwatch(pixels_TCHW.device)
        config = request.config
        text_D = self._embed_query(request)
        compress = 1 in config.stages
        strides = config.strides if compress else (DENSE_STRIDE,)
        chunks = pixels_TCHW.split(self.config.encoder_chunk_frames)
        whole = compress and len(chunks) == 1  # then each frame is pooled at its own stride only
        means, images = [], []
        pooled: tuple[list[Tensor], ...] = tuple([] for _ in strides)
        for chunk_TCHW in chunks:
            seen_TPD = self.see(chunk_TCHW)
            if text_D is not None:
                images.append(self._embed_images(chunk_TCHW, seen_TPD))
            x_TPD = self.project(seen_TPD)
            means.append(x_TPD.mean(1, dtype=torch.float32))
            if not whole:
                for tokens, stride in zip(pooled, strides, strict=True):
                    tokens.append(pool_frames(x_TPD, self.grid, stride))
        relevance_T = None
        if text_D is not None:
            relevance_T = AlignmentTowers.relevance(torch.cat(images), text_D)
        events = analyse(torch.cat(means), relevance_T, config)
        newline_D = newline_D.to(x_TPD.dtype)
        total = encoded_tokens(len(pixels_TCHW), self.grid, config)
        if whole:
            classes, bounds = events.class_T, events.event_T
            tokens_ND, _ = adaptive_pool(
                x_TPD, classes, bounds, newline_D, self.grid, config.strides, total=total
            )
        else:
            rows = [chunk.flatten(0, 1) for tokens in pooled for chunk in tokens]
            tokens_ND = torch.cat([*rows, newline_D[None]])
            if compress:
                row_N, _ = self._pack(events, config, total)
                tokens_ND = tokens_ND.index_select(0, row_N)
        on_host = EventMap(*(to_host(getattr(events, field.name)) for field in fields(EventMap)))
        watch.stop()
        encoded = _Encoded(events, on_host, watch, True, config, tokens_ND.shape[0])
        self._remember(request.key, encoded)
        return tokens_ND

    def token_events(self, key: str) -> TokenEvents | None:
        """The events of the tokens of a video with this key, or None if forgotten."""
        if key not in self.remembered:
            return None
        self.remembered.move_to_end(key)  # what is still prefilled is forgotten last
        encoded = self.remembered[key]
        events = encoded.events
        if 1 in encoded.config.stages:
            _, event_N = self._pack(events, encoded.config, encoded.tokens)
        else:
            # Every frame alike; the single newline belongs to the last event.
            frames = events.event_T.shape[0]
            per_frame = events.event_T.repeat_interleave((encoded.tokens - 1) // frames)
            event_N = torch.cat([per_frame, events.event_T[-1:]])
        return TokenEvents(event_N, events.key_E, events.event_relevance_E)

    def recall(self, key: str) -> dict[str, Any] | None:
        """What was decided about the video with this key, as plain lists, or None if forgotten.

        `seconds` is how long encoding it took, told once: a cached video costs nothing again.
        """
        if key not in self.remembered:
            return None
        encoded = self.remembered[key]
        events = encoded.on_host
        encoded.watch.wait()
        self.remembered[key] = replace(encoded, timed=False)
        self.remembered.move_to_end(key)  # what is still asked about is forgotten last
        return {
            "seconds": encoded.watch.seconds() if encoded.timed else None,
            "event_of_frame": events.event_T.tolist(),
            "relevance_of_frame": events.relevance_T.tolist(),
            "class_of_frame": events.class_T.tolist(),
            "event_relevance": events.event_relevance_E.tolist(),
            "event_key": events.key_E.tolist(),
        }

    def _encode_by_rule(
        self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest
    ) -> Tensor:
        """Visual tokens [N, D] by another rule than METok's."""
        rule, frames = request.config.rule, len(pixels_TCHW)
        chunks = pixels_TCHW.split(self.config.encoder_chunk_frames)
        seen = (self.project(self.see(chunk_TCHW)) for chunk_TCHW in chunks)
        x_TPD = torch.cat([pool_frames(x, self.grid, DENSE_STRIDE) for x in seen])
        share = 1 if rule == FASTV else request.config.rule_keep
        keep = kept_tokens(frames, self.grid, share)
        return compress_by_rule(rule, x_TPD, newline_D.to(x_TPD.dtype), keep, request.key)

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

    def _pack(self, events: EventMap, config: METokConfig, total: int) -> tuple[Tensor, Tensor]:
        fine, medium, coarse = (pooled_length(self.grid, stride) for stride in config.strides)
        return pack_index(events.class_T, events.event_T, (fine, medium, coarse), total)

    def _remember(self, key: str, encoded: _Encoded) -> None:
        # The encoder cache may serve a video long after it was encoded; its events must still be
        # there for the prefill and when the answer is written. A few small tensors a video.
        self.remembered[key] = encoded
        self.remembered.move_to_end(key)
        while len(self.remembered) > self.max_remembered:
            self.remembered.popitem(last=False)
