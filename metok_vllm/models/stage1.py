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
from metok_vllm.models.event_store import EventStore, StoredEvents
from metok_vllm.models.feature_cache import VideoFeatures
from metok_vllm.models.packing import dense_index, pack, packed_index, with_newline
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.models.video_features import VideoFeatureEncoder
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.pruning import TokenEvents


class Stage1Encoder:
    """Event-aware encoding for a video model given as two functions.

    `see`, `project`, `pixels` and `towers` are those of `VideoFeatureEncoder`.
    """

    def __init__(
        self,
        config: METokConfig,
        see: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        pixels: Normalisation,
        towers: AlignmentTowers | None,
        max_stored: int = 0,
    ) -> None:
        self.video = VideoFeatureEncoder(config, see, project, pixels, towers)
        self.events = EventStore(max_stored)

    def encode(
        self,
        pixels_TCHW: Tensor,
        newline_D: Tensor | None,
        request: EncodeRequest,
        video: VideoLayout,
    ) -> Tensor:
        """Visual tokens [N1, D] of one video; its events are stored under `request.key`."""
        if request.config.rule != METOK:
            return self._encode_by_rule(pixels_TCHW, newline_D, request, video)
        watch = Stopwatch(pixels_TCHW.device)
        config = request.config
        text_D = self.video.embed_query(request, watch)
        ranked, cached = text_D is not None, None
        if 1 in config.stages and self.video.at_once(pixels_TCHW, request):
            features, x_TPD = self.video.compute(pixels_TCHW, video, (), ranked, watch)
            events = _analyse(features, text_D, config)
            tokens_ND = pack(x_TPD, events, newline_D, config, video)
        else:
            strides = config.strides if 1 in config.stages else (video.dense_stride,)
            features, cached = self.video.features(
                pixels_TCHW, video, strides, ranked, request, watch
            )
            events = _analyse(features, text_D, config)
            tokens_ND = _gather(features, events, newline_D, config, video)
        stored = StoredEvents.of(events, config, video, cached, watch)
        self.events.put(request.key, stored)
        return tokens_ND

    def token_events(self, key: str) -> TokenEvents | None:
        """The events of a video's tokens; None if they are not stored."""
        stored = self.events.get(key)
        if stored is None:
            return None
        events, video = stored.events, stored.video
        if 1 in stored.config.stages:
            _, event_N = packed_index(events, stored.config, video)
        else:
            # Every frame alike; the newline that closes the video belongs to the last event.
            per_frame = video.frame_tokens(video.dense_stride)
            event_N = events.event_T.repeat_interleave(per_frame)
            if video.closes_events:
                event_N = torch.cat([event_N, events.event_T[-1:]])
        return TokenEvents(event_N, events.key_E, events.event_relevance_E)

    def _encode_by_rule(
        self,
        pixels_TCHW: Tensor,
        newline_D: Tensor | None,
        request: EncodeRequest,
        video: VideoLayout,
    ) -> Tensor:
        """Visual tokens [N, D] by another method than METok."""
        rule, watch = request.config.rule, Stopwatch(pixels_TCHW.device)
        stride = video.dense_stride
        features, _ = self.video.features(pixels_TCHW, video, (stride,), False, request, watch)
        x_TPD = torch.cat(features.pooled[stride])
        if rule == FASTV:  # it selects in the decoder
            return with_newline(x_TPD.flatten(0, 1), newline_D)[dense_index(video, x_TPD.device)]
        keep = video.kept_features(request.config.rule_keep)
        closing = newline_D.to(x_TPD.dtype) if newline_D is not None else None
        closing = closing if video.closes_events else None
        return compress_by_rule(rule, x_TPD, closing, keep, request.key)


def _gather(
    features: VideoFeatures,
    events: EventMap,
    newline_D: Tensor | None,
    config: METokConfig,
    video: VideoLayout,
) -> Tensor:
    """Packed tokens [N1, D], or the dense ones without stage 1, from pooled frames."""
    compress = 1 in config.stages
    strides = config.strides if compress else (video.dense_stride,)
    rows = [part.flatten(0, 1) for stride in strides for part in features.pooled[stride]]
    tokens_ND = with_newline(torch.cat(rows), newline_D)
    if compress:
        return tokens_ND.index_select(0, packed_index(events, config, video)[0])
    return tokens_ND.index_select(0, dense_index(video, tokens_ND.device))


def _analyse(features: VideoFeatures, text_D: Tensor | None, config: METokConfig) -> EventMap:
    relevance_T = None
    if text_D is not None:
        assert features.image_TD is not None
        relevance_T = AlignmentTowers.relevance(features.image_TD, text_D)
    return analyse(features.mean_TD, relevance_T, config)
