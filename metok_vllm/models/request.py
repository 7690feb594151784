"""What the processor tells the encoder about one video: one small JSON field beside the pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.config import METokConfig

FIELD = "metok_request"
STAGE1_FIELDS = ("num_events", "key_event_ratio", "key_frames_per_event", "strides")


@dataclass(frozen=True)
class EncodeRequest:
    """Stage 1 for one video. `key` is the video's identity in vLLM's caches, question included."""

    key: str
    config: METokConfig
    query_ids: tuple[tuple[int, ...], ...]  # [W, L]; empty without towers or without a question


def stage1_payload(config: METokConfig, query_ids: Tensor) -> str:
    """Everything that changes the encoder's output, canonical: it is part of every cache key."""
    settings = {name: getattr(config, name) for name in STAGE1_FIELDS}
    return json.dumps({**settings, "query_ids": query_ids.tolist()}, sort_keys=True)


def pack(key: str, payload: str | None) -> Tensor:
    """One video's field, uint8 [bytes]; `payload` None means the model's own dense input."""
    text = json.dumps({"key": key, "payload": payload})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def unpack(field: Tensor | Sequence[Tensor], base: METokConfig) -> list[EncodeRequest | None]:
    """The requests of a batch of videos, None where a video is dense."""
    return [_unpack_one(item, base) for item in field]


def _unpack_one(item: Tensor, base: METokConfig) -> EncodeRequest | None:
    content: dict[str, Any] = json.loads(bytes(item.cpu().tolist()))
    if content["payload"] is None:
        return None
    settings: dict[str, Any] = json.loads(content["payload"])
    query_ids = tuple(tuple(row) for row in settings.pop("query_ids"))
    return EncodeRequest(content["key"], base.updated(settings), query_ids)
