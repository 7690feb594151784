"""Stage 1 in the encoder: one video's frames in, packed visual tokens out.

Without stage 1 the tokens are the model's own dense ones; events are still computed, because stage
2 selects inside them. A request may choose another method: it gets the dense tokens, and there are
no events. Features come from the towers or, for a later question, from the feature cache. With the
reduction `resize` events come first, and then the tower. Nothing here waits for the device.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.baselines.encoder import select
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import FASTV, METOK, POOL, RESIZE
from metok_vllm.events import EventMap, analyse
from metok_vllm.models.event_store import EventStore, StoredEvents
from metok_vllm.models.packing import (
    dense_index,
    interleaved,
    offset_rows,
    pack,
    packed_index,
    separator_rows,
    with_rows,
)
from metok_vllm.models.positions import VideoPositions, to_channels
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.resizing import frames_by_class, rows_by_class
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.models.video_features import Resize, See, VideoFeatureEncoder
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.pruning import TokenEvents


class Stage1Encoder:
    """Event-aware encoding for a video model given as functions.

    `see` to `resize` are those of `VideoFeatureEncoder`.
    """

    def __init__(
        self,
        config: METokConfig,
        see: See,
        project: Callable[[Tensor], Tensor],
        pixels: Normalisation,
        towers: AlignmentTowers | None,
        max_stored: int = 0,
        *,
        picture: See | None = None,
        width: int | None = None,
        resize: Resize | None = None,
    ) -> None:
        self.video = VideoFeatureEncoder(
            config, see, project, pixels, towers, picture, width, resize
        )
        self.events = EventStore(max_stored)
        # FastV's videos with text between their frames, and their device.
        self.unranked: OrderedDict[str, tuple[VideoLayout, torch.device]] = OrderedDict()

    def encode(
        self,
        pixels: Tensor,
        newline_D: Tensor | None,
        request: EncodeRequest,
        video: VideoLayout,
        separator_SD: Tensor | None = None,
        positions: VideoPositions | None = None,
    ) -> Tensor:
        """Visual tokens [N1, D] of one video; its events are stored under `request.key`.

        `pixels` has the frames of the layout first. `separator_SD` are the embeddings of the text
        between frames. With `positions`, each token has six channels more (`positions.py`).
        """
        if request.config.rule != METOK:
            return self._encode_by_rule(pixels, newline_D, request, video, separator_SD, positions)
        watch = Stopwatch(pixels.device)
        config = request.config
        text_D = self.video.embed_query(request, watch)
        ranked, cached = text_D is not None, None
        strides = config.strides if 1 in config.stages else (video.dense_stride,)
        reduction = config.reduce if 1 in config.stages else POOL
        row_N = None
        places: Mapping[int, Sequence[Tensor]] = {}
        at_once = 1 in config.stages and self.video.at_once(video, request)
        if reduction == RESIZE:
            frame_TD = self.video.frames_unseen(pixels, video, watch)
            events = _analyse(frame_TD, frame_TD, text_D, config)
            row_N = _token_rows(events, config, video)[0]
            tokens_ND = self._resized(
                pixels, newline_D, config, video, separator_SD, events, row_N, watch
            )
        elif at_once and reduction == POOL:
            features, x_TPD = self.video.compute(pixels, video, (), ranked, watch)
            events = _analyse(features.mean_TD, features.image_TD, text_D, config)
            tokens_ND = pack(x_TPD, events, newline_D, config, video, separator_SD)
        else:
            features, cached = self.video.features(
                pixels, video, strides, ranked, request, watch, reduction
            )
            places = features.places
            events = _analyse(features.mean_TD, features.image_TD, text_D, config)
            rows = [part.flatten(0, 1) for stride in strides for part in features.pooled[stride]]
            row_N = _token_rows(events, config, video)[0]
            rows_ND = with_rows(torch.cat(rows), newline_D, separator_SD)
            tokens_ND = rows_ND.index_select(0, row_N)
        if positions is not None:
            row_N = _token_rows(events, config, video)[0] if row_N is None else row_N
            tokens_ND = _with_positions(tokens_ND, row_N, positions, strides, video, places)
        stored = StoredEvents.of(events, config, video, cached, watch)
        self.events.put(request.key, stored)
        return tokens_ND

    def token_events(self, key: str) -> TokenEvents | None:
        """The events of a video's tokens; None if they are not stored.

        FastV's videos are one event; they are stored where text stands between their frames.
        """
        stored = self.events.get(key)
        if stored is None and key in self.unranked:
            self.unranked.move_to_end(key)
            video, device = self.unranked[key]
            row_N = dense_index(video, device)[0]
            fixed_N = separator_rows(row_N, (video.dense_stride,), video)
            assert fixed_N is not None
            return TokenEvents.one(fixed_N)
        if stored is None:
            return None
        events, config, video = stored.events, stored.config, stored.video
        row_N, event_N = _token_rows(events, config, video)
        strides = config.strides if 1 in config.stages else (video.dense_stride,)
        fixed_N = separator_rows(row_N, strides, video)
        return TokenEvents(event_N, events.key_E, events.event_relevance_E, fixed_N)

    def _resized(
        self,
        pixels: Tensor,
        newline_D: Tensor | None,
        config: METokConfig,
        video: VideoLayout,
        separator_SD: Tensor | None,
        events: EventMap,
        row_N: Tensor,
        watch: Stopwatch,
    ) -> Tensor:
        """Visual tokens [N1, D] of frames that the tower sees at the resolution of their class."""
        counts, strides = video.budget(config).counts, config.strides
        frames = frames_by_class(events.class_T, counts)
        rows_RD = self.video.see_resized(pixels, video, frames, strides, watch)
        rows_RD = with_rows(rows_RD, newline_D, separator_SD)
        sizes = [video.frame_features(stride) for stride in strides]
        held_N = rows_by_class(row_N, events.class_T, counts, sizes, len(rows_RD))
        return rows_RD.index_select(0, held_N)

    def _encode_by_rule(
        self,
        pixels: Tensor,
        newline_D: Tensor | None,
        request: EncodeRequest,
        video: VideoLayout,
        separator_SD: Tensor | None,
        positions: VideoPositions | None,
    ) -> Tensor:
        """Visual tokens [N, D] by another method than METok."""
        rule, watch = request.config.rule, Stopwatch(pixels.device)
        stride = video.dense_stride
        features, _ = self.video.features(pixels, video, (stride,), False, request, watch)
        x_TPD = torch.cat(features.pooled[stride])
        rows_ND = with_rows(x_TPD.flatten(0, 1), newline_D, separator_SD)
        if rule == FASTV:  # it selects in the decoder
            row_N = dense_index(video, x_TPD.device)[0]
            self._keep_unranked(request.key, video, x_TPD.device)
        else:
            keep = video.kept_features(request.config.rule_keep)
            # Rows end nowhere among selected features; only the last newline stays.
            kept_N = select(rule, x_TPD[..., : self.video.width], keep, request.key)
            row_N = interleaved(kept_N, video)
            if video.closes_events:
                row_N = torch.cat([row_N, torch.full_like(row_N[:1], len(rows_ND) - 1)])
        tokens_ND = rows_ND.index_select(0, row_N)
        if positions is None:
            return tokens_ND
        return _with_positions(tokens_ND, row_N, positions, (stride,), video)

    def _keep_unranked(self, key: str, video: VideoLayout, device: torch.device) -> None:
        """Keep a video's layout as long as the events of others, if it has separators."""
        if not video.separators:
            return
        self.unranked[key] = video.without_ids(), device
        self.unranked.move_to_end(key)
        while len(self.unranked) > self.events.capacity:
            self.unranked.popitem(last=False)


def _token_rows(events: EventMap, config: METokConfig, video: VideoLayout) -> tuple[Tensor, Tensor]:
    """Row and event of each token, int64 [N1] each, of stage 1 or of the dense input."""
    if 1 in config.stages:
        return packed_index(events, config, video)
    row_N, frame_N = dense_index(video, events.event_T.device)
    return row_N, events.event_T[frame_N]


def _with_positions(
    tokens_ND: Tensor,
    row_N: Tensor,
    positions: VideoPositions,
    strides: Sequence[int],
    video: VideoLayout,
    places: Mapping[int, Sequence[Tensor]] = MappingProxyType({}),
) -> Tensor:
    offset_R3 = offset_rows(positions, strides, video, tokens_ND.device, places)
    channel_N6 = to_channels(offset_R3.index_select(0, row_N), tokens_ND.dtype)
    return torch.cat([tokens_ND, channel_N6], dim=1)


def _analyse(
    feature_TD: Tensor, image_TD: Tensor | None, text_D: Tensor | None, config: METokConfig
) -> EventMap:
    relevance_T = None
    if text_D is not None:
        assert image_TD is not None
        relevance_T = AlignmentTowers.relevance(image_TD, text_D)
    return analyse(feature_TD, relevance_T, config)
