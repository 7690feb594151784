"""Stage 1 in the encoder: one video's frames in, packed visual tokens out.

Without stage 1 the tokens are the model's own dense ones; events are found all the same, because
stage 2 selects inside them. A request may choose another rule in place of METok: that one is given
the dense tokens, and there are no events.

What the towers make of the frames comes from `video_features`, new or kept from an earlier
question. Nothing here waits for the device.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.baselines.encoder import compress as compress_by_rule
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import FASTV, METOK
from metok_vllm.devices import to_host
from metok_vllm.events import EventMap, analyse
from metok_vllm.kernels.adaptive_pool import adaptive_pool, pack_index
from metok_vllm.models.feature_cache import VideoFeatures
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.models.video_features import VideoFeatureEncoder
from metok_vllm.plan.tokens import DENSE_STRIDE, encoded_tokens, kept_tokens, pooled_length
from metok_vllm.pruning import TokenEvents

LEAST_REMEMBERED = 1024


@dataclass(frozen=True)
class _Encoded:
    events: EventMap
    on_host: EventMap  # readable once the watch has passed its end
    watch: Stopwatch
    timed: bool
    config: METokConfig
    tokens: int
    cached: bool | None  # whether the features came from the cache; None where it takes none
    prefill: Stopwatch | None = None  # of the step that selected of it, with others perhaps
    in_prefill: int = 0  # videos in that step, this one among them


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
        max_remembered: int = LEAST_REMEMBERED,
    ) -> None:
        self.grid = grid
        self.video = VideoFeatureEncoder(config, see, project, grid, pixels, towers)
        self.max_remembered = max(max_remembered, LEAST_REMEMBERED)
        self.remembered: OrderedDict[str, _Encoded] = OrderedDict()

    def encode(self, pixels_TCHW: Tensor, newline_D: Tensor, request: EncodeRequest) -> Tensor:
        """Visual tokens [N1, D] of one video; the events stay readable under `request.key`."""
        if request.config.rule != METOK:
            return self._encode_by_rule(pixels_TCHW, newline_D, request)
        watch = Stopwatch(pixels_TCHW.device)
        config = request.config
        text_D = self.video.embed_query(request, watch)
        ranked, cached = text_D is not None, None
        if 1 in config.stages and self.video.at_once(pixels_TCHW, request):
            features, x_TPD = self.video.look(pixels_TCHW, (), ranked, watch)
            events = _analyse(features, text_D, config)
            tokens_ND = self._pool(x_TPD, events, newline_D, config)
        else:
            strides = config.strides if 1 in config.stages else (DENSE_STRIDE,)
            features, cached = self.video.features(pixels_TCHW, strides, ranked, request, watch)
            events = _analyse(features, text_D, config)
            tokens_ND = self._gather(features, events, newline_D, config)
        on_host = EventMap(*(to_host(getattr(events, field.name)) for field in fields(EventMap)))
        watch.stop()
        encoded = _Encoded(events, on_host, watch, True, config, tokens_ND.shape[0], cached)
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

    def note_prefill(self, keys: Sequence[str], watch: Stopwatch) -> None:
        """A decoder step selected of these videos; the watch's laps are stage 2."""
        for key in keys:
            if key in self.remembered:
                encoded = self.remembered[key]
                self.remembered[key] = replace(encoded, prefill=watch, in_prefill=len(keys))

    def recall(self, key: str) -> dict[str, Any] | None:
        """What was decided about the video with this key, as plain lists, or None if forgotten.

        Times are told once: a cached video costs nothing again. `seconds` is how long encoding it
        took, `own_seconds` how much of that was neither a tower nor the projector;
        `prefill_seconds` its share of the decoder's step that selected of it, `pruning_seconds` how
        much of that was stage 2's. `cached` is told with them: whether its features were kept from
        an earlier question, None where none are.
        """
        if key not in self.remembered:
            return None
        encoded = self.remembered[key]
        events = encoded.on_host
        encoded.watch.wait()
        self.remembered[key] = replace(encoded, timed=False, prefill=None)
        self.remembered.move_to_end(key)  # what is still asked about is forgotten last
        return {
            **_times(encoded),
            "cached": encoded.cached if encoded.timed else None,
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

    def _remember(self, key: str, encoded: _Encoded) -> None:
        # The encoder cache may serve a video long after it was encoded; its events must still be
        # there for the prefill and when the answer is written. A few small tensors a video.
        self.remembered[key] = encoded
        self.remembered.move_to_end(key)
        while len(self.remembered) > self.max_remembered:
            self.remembered.popitem(last=False)


def _analyse(features: VideoFeatures, text_D: Tensor | None, config: METokConfig) -> EventMap:
    relevance_T = None
    if text_D is not None:
        assert features.image_TD is not None
        relevance_T = AlignmentTowers.relevance(features.image_TD, text_D)
    return analyse(features.mean_TD, relevance_T, config)


def _times(encoded: _Encoded) -> dict[str, float | None]:
    """What is still to be told; None for a step that the device has not ended yet."""
    names = ("seconds", "own_seconds", "prefill_seconds", "pruning_seconds")
    times: dict[str, float | None] = dict.fromkeys(names)
    seconds, in_towers = encoded.watch.seconds(), encoded.watch.lap_seconds()
    if encoded.timed and seconds is not None and in_towers is not None:
        times |= {"seconds": seconds, "own_seconds": seconds - in_towers}
    if encoded.prefill is not None:
        whole, pruning = encoded.prefill.seconds(), encoded.prefill.lap_seconds()
        if whole is not None and pruning is not None:
            share = 1 / encoded.in_prefill
            times |= {"prefill_seconds": whole * share, "pruning_seconds": pruning * share}
    return times
