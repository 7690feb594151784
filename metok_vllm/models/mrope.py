"""Rotary positions with three axes (M-RoPE) for videos that METok compresses.

Every token keeps the position that it has in the dense prompt; a pooled one takes its cell's
centre. So what follows the video, and decoding, have the dense prompt's positions, and the offset
of decoding does not depend on content. Which tokens stay is decided in the encoder, so a video's
distances travel as six channels behind its features, two bytes for each axis (exact in bfloat16),
and `forward` adds them to the positions that vLLM prepared.
Source of what is overridden: `get_mrope_input_positions` and `embed_input_ids` of
vllm/model_executor/models/qwen2_5_vl.py and qwen3_vl.py, version 0.32.

Shape suffixes: N tokens, T frames, P features of a frame, S separators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.model_executor.models.utils import _merge_multimodal_embeddings

from metok_vllm.models import request as wire
from metok_vllm.models.positions import AXES, MAX_SPAN, VideoPositions, from_channels
from metok_vllm.plan.layout import VideoLayout

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import MropeSurface
else:
    MropeSurface = object


def grow_rotary_cache(rotary: Any, positions: int) -> None:
    """Extend a rotary embedding of vLLM to at least `positions` positions.

    A compressed prompt may be shorter than its positions, which then exceed the context length.
    """
    if rotary.max_position_embeddings < positions:
        like = rotary.cos_sin_cache
        rotary.max_position_embeddings = positions
        with torch.device(like.device):
            rotary.cos_sin_cache = rotary._compute_cos_sin_cache().to(like.dtype)


class MropeModel(MropeSurface):
    """Mixed in before a Qwen video model of vLLM. `feature_width` is what its encoder returns."""

    _offset_N3: Tensor | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        positions = vllm_config.model_config.max_model_len + MAX_SPAN
        for layer in self.language_model.model.layers:
            # Layers of other pipeline ranks and those with linear attention have none.
            if hasattr(layer, "self_attn"):
                grow_rotary_cache(layer.self_attn.rotary_emb, positions)

    @property
    def feature_width(self) -> int:
        """Channels of the model's own encoder output."""
        raise NotImplementedError

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """As vLLM's for the dense prompt; the tokens of a METok video have its first position."""
        layouts = {
            feature.mm_position.offset: layout
            for feature in mm_features
            if feature.modality == "video" and (layout := _layout_of(feature.data)) is not None
        }
        if not layouts:
            positions, delta = super().get_mrope_input_positions(input_tokens, mm_features)
            return positions, delta
        tokens: list[int] = []
        features, pieces, done = [], [], 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            tokens += input_tokens[done : place.offset]
            pieces.append((len(tokens), None))
            end = place.offset + place.length
            layout = layouts.get(place.offset)
            ids = input_tokens[place.offset : end] if layout is None else self._dense_ids(layout)
            moved = replace(place, offset=len(tokens), length=len(ids))
            features.append(replace(feature, mm_position=moved))
            tokens += ids
            pieces.append((len(tokens), place.length if layout is not None else None))
            done = end
        tokens += input_tokens[done:]
        pieces.append((len(tokens), None))
        dense_3N, delta = super().get_mrope_input_positions(tokens, features)
        parts, start = [], 0
        for stop, length in pieces:
            part_3N = dense_3N[:, start:stop]
            parts.append(part_3N if length is None else part_3N[:, :1].expand(AXES, length))
            start = stop
        return torch.cat(parts, dim=1), delta + len(tokens) - len(input_tokens)

    def dense_positions(self, video: VideoLayout, fields: Mapping[str, Any]) -> VideoPositions:
        """Positions of a dense video by vLLM's own rule, on the host.

        `fields` are the video's fields in vLLM by name, without their batch dimension.
        """
        ids = self._dense_ids(video)
        feature = _Feature("video", _Place(0, len(ids)), _Fields(fields))
        dense_3N, _ = super().get_mrope_input_positions(ids, [feature])
        offset_N3 = (dense_3N - dense_3N[:, :1]).T.contiguous()
        if not video.before:
            return VideoPositions(offset_N3.view(video.frames, -1, AXES), offset_N3[:0])
        features, separators, start = [], [], 0
        size = video.frame_features(video.dense_stride)
        for before, after in zip(video.before, video.after, strict=True):
            first = start + len(before)
            separators.append(offset_N3[start:first])
            features.append(offset_N3[first : first + size])
            start = first + size + len(after)
            separators.append(offset_N3[first + size : start])
        return VideoPositions(torch.stack(features), torch.cat(separators))

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """As vLLM's; the position channels of METok's videos are kept for `forward`."""
        self._offset_N3 = None
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            multimodal_embeddings = self._without_channels(
                multimodal_embeddings, len(input_ids), is_multimodal
            )
        embeds: Tensor = super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embeds

    def add_offsets(self, positions_3N: Tensor) -> None:
        """Move positions [3, N] of a step in place: vLLM refills its buffer in every step."""
        if self._offset_N3 is not None:
            positions_3N[:, : len(self._offset_N3)] += self._offset_N3.T
            self._offset_N3 = None

    def _without_channels(
        self, items: Sequence[Tensor], num_tokens: int, is_multimodal: Tensor | None
    ) -> list[Tensor]:
        width = self.feature_width
        if all(item.shape[-1] == width for item in items):
            return list(items)
        assert is_multimodal is not None
        offsets = [
            from_channels(item[:, width:])
            if item.shape[-1] > width
            else torch.zeros(len(item), AXES, dtype=torch.int64, device=item.device)
            for item in items
        ]
        none_N3 = torch.zeros(num_tokens, AXES, dtype=torch.int64, device=offsets[0].device)
        self._offset_N3 = _merge_multimodal_embeddings(none_N3, offsets, is_multimodal)
        return [item[:, :width] for item in items]

    def _dense_ids(self, video: VideoLayout) -> list[int]:
        return video.dense_ids(self.config.video_token_id)


@dataclass(frozen=True)
class _Place:
    offset: int
    length: int


@dataclass(frozen=True)
class _Field:
    data: Any


class _Fields(dict[str, _Field]):
    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__({name: _Field(value) for name, value in fields.items()})


@dataclass(frozen=True)
class _Feature:
    """What vLLM's rule reads of a MultiModalFeatureSpec."""

    modality: str
    mm_position: _Place
    data: _Fields


def _layout_of(fields: Any) -> VideoLayout | None:
    if fields is None or wire.FIELD not in fields:
        return None
    return wire.read_layout(fields[wire.FIELD].data)
