"""Stage 1 in the encoder: one video's frames in, packed visual tokens out.

Without stage 1 the tokens are the model's own dense ones; events are still computed, because stage
2 selects inside them. A request may choose another method: it gets the dense tokens, and there are
no events. Features come from the towers or, for a later question, from the feature cache. Nothing
here waits for the device.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.baselines.encoder import compress as compress_by_rule
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import FASTV, METOK
from metok_vllm.events import EventMap, analyse
from metok_vllm.kernels.adaptive_pool import adaptive_pool, pack_index
from metok_vllm.models.event_store import EventStore, StoredEvents
from metok_vllm.models.feature_cache import VideoFeatures
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.models.video_features import VideoFeatureEncoder
from metok_vllm.plan.tokens import DENSE_STRIDE, encoded_tokens, kept_tokens, pooled_length
from metok_vllm.pruning import TokenEvents


class Stage1Encoder:
    """Event-aware encoding for a video model given as two functions.

    `see`, `project`, `grid`, `pixels` and `towers` are those of `VideoFeatureEncoder`.
    """

    def __init__(
        self,
        config: METokConfig,
        see: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        grid: int,
        pixels: Normalisation,
        towers: AlignmentTowers | None,
        max_stored: int = 0,
    ) -> None:
        self.grid = grid
        self.video = VideoFeatureEncoder(config, see, project, grid, pixels, towers)
        self.events = EventStore(max_stored)

    def encode(self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest) -> Tensor:
        """Visual tokens [N1, D] of one video; its events are stored under `request.key`."""
        if request.config.rule != METOK:
            return self._encode_by_rule(pixels_TCHW, newline_D, request)
        watch = Stopwatch(pixels_TCHW.device)
        config = request.config
        text_D = self.video.embed_query(request, watch)
        ranked, cached = text_D is not None, None
        if 1 in config.stages and self.video.at_once(pixels_TCHW, request):
            features, x_TPD = self.video.compute(pixels_TCHW, (), ranked, watch)
            events = _analyse(features, text_D, config)
            tokens_ND = self._pool(x_TPD, events, newline_D, config)
        else:
            strides = config.strides if 1 in config.stages else (DENSE_STRIDE,)
            features, cached = self.video.features(pixels_TCHW, strides, ranked, request, watch)
            events = _analyse(features, text_D, config)
            tokens_ND = self._gather(features, events, newline_D, config)
        stored = StoredEvents.of(events, config, len(tokens_ND), cached, watch)
        self.events.put(request.key, stored)
        return tokens_ND

    def token_events(self, key: str) -> TokenEvents | None:
        """The events of a video's tokens; None if they are not stored."""
        stored = self.events.get(key)
        if stored is None:
            return None
        events = stored.events
        if 1 in stored.config.stages:
            _, event_N = self._pack(events, stored.config, stored.tokens)
        else:
            # Every frame alike; the single newline belongs to the last event.
            frames = events.event_T.shape[0]
            per_frame = events.event_T.repeat_interleave((stored.tokens - 1) // frames)
            event_N = torch.cat([per_frame, events.event_T[-1:]])
        return TokenEvents(event_N, events.key_E, events.event_relevance_E)

    def _encode_by_rule(
        self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest
    ) -> Tensor:
        """Visual tokens [N, D] by another method than METok."""
        rule, watch = request.config.rule, Stopwatch(pixels_TCHW.device)
        features, _ = self.video.features(pixels_TCHW, (DENSE_STRIDE,), False, request, watch)
        x_TPD = torch.cat(features.pooled[DENSE_STRIDE])
        share = 1 if rule == FASTV else request.config.rule_keep
        keep = kept_tokens(len(pixels_TCHW), self.grid, share)
        return compress_by_rule(rule, x_TPD, newline_D.to(x_TPD.dtype), keep, request.key)

    def _pool(
        self, x_TPD: Tensor, events: EventMap, newline_D: Tensor, config: METokConfig
    ) -> Tensor:
        """Packed tokens [N1, D] from all patches, each frame pooled at its own stride only."""
        tokens_ND, _ = adaptive_pool(
            x_TPD,
            events.class_T,
            events.event_T,
            newline_D.to(x_TPD.dtype),
            self.grid,
            config.strides,
            total=encoded_tokens(len(x_TPD), self.grid, config),
        )
        return tokens_ND

    def _gather(
        self, features: VideoFeatures, events: EventMap, newline_D: Tensor, config: METokConfig
    ) -> Tensor:
        """Packed tokens [N1, D], or the dense ones without stage 1, from pooled frames."""
        compress = 1 in config.stages
        strides = config.strides if compress else (DENSE_STRIDE,)
        rows = [part.flatten(0, 1) for stride in strides for part in features.pooled[stride]]
        tokens_ND = torch.cat([*rows, newline_D[None].to(rows[0].dtype)])
        if not compress:
            return tokens_ND
        total = encoded_tokens(len(features.mean_TD), self.grid, config)
        row_N, _ = self._pack(events, config, total)
        return tokens_ND.index_select(0, row_N)

    def _pack(self, events: EventMap, config: METokConfig, total: int) -> tuple[Tensor, Tensor]:
        fine, medium, coarse = (pooled_length(self.grid, stride) for stride in config.strides)
        return pack_index(events.class_T, events.event_T, (fine, medium, coarse), total)


def _analyse(features: VideoFeatures, text_D: Tensor | None, config: METokConfig) -> EventMap:
    relevance_T = None
    if text_D is not None:
        assert features.image_TD is not None
        relevance_T = AlignmentTowers.relevance(features.image_TD, text_D)
    return analyse(features.mean_TD, relevance_T, config)
