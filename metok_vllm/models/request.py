"""What the processor tells the engine about one video: one small JSON field beside the pixels.

The encoder reads how to encode the video, scheduler and worker read how to prune and evict it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.prompt_plan import EVICT, PRUNE, Pruning
from metok_vllm.rules import METOK

FIELD = "metok_request"
# Whether and by which preset is decided; what remains of a request's settings is what was decided.
SELECTION_FIELDS = REQUEST_FIELDS - {"enabled", "preset"}


@dataclass(frozen=True)
class EncodeRequest:
    """One video to encode. `key` is its identity in vLLM's caches, question included."""

    key: str
    config: METokConfig
    query_ids: tuple[tuple[int, ...], ...]  # [W, L]; empty without towers or without a question


def selection_payload(config: METokConfig, query_ids: Tensor) -> str:
    """All that decides what is selected of a video, canonical: it is part of every cache key."""
    if config.rule != METOK:  # nothing else is read, and the question does not matter
        settings = {"rule": config.rule, "rule_keep": config.rule_keep, "query_ids": []}
        return json.dumps(settings, sort_keys=True)
    settings = {name: getattr(config, name) for name in SELECTION_FIELDS - {"rule_keep"}}
    if PRUNE not in config.stages:
        del settings["keep_ratio"]
    if EVICT not in config.stages:
        del settings["decode_keep"]
    return json.dumps({**settings, "query_ids": query_ids.tolist()}, sort_keys=True)


def pack(key: str, payload: str | None, key_share: Fraction = Fraction(1)) -> Tensor:
    """One video's field, uint8 [bytes]; `payload` None means the model's own dense input."""
    content = {"key": key, "payload": payload, "key_share": key_share.as_integer_ratio()}
    return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)


def unpack(field: Tensor | Sequence[Tensor], base: METokConfig) -> list[EncodeRequest | None]:
    """The requests of a batch of videos, None where a video is dense."""
    return [_unpack_one(item, base) for item in field]


def read_pruning(field: Tensor) -> tuple[str, Pruning] | None:
    """Key of a video and what stages 2 and 3 shall do with it; None for the dense input."""
    content = _content(field)
    if content["payload"] is None:
        return None
    config = METokConfig().updated(settings_of(content["payload"]))
    return content["key"], Pruning.of(config, Fraction(*content["key_share"]))


def settings_of(payload: str) -> dict[str, Any]:
    """The METokConfig fields in a payload."""
    settings: dict[str, Any] = json.loads(payload)
    return {name: value for name, value in settings.items() if name in SELECTION_FIELDS}


def _unpack_one(item: Tensor, base: METokConfig) -> EncodeRequest | None:
    content = _content(item)
    if content["payload"] is None:
        return None
    query_ids = tuple(tuple(row) for row in json.loads(content["payload"])["query_ids"])
    return EncodeRequest(content["key"], base.updated(settings_of(content["payload"])), query_ids)


def _content(field: Tensor) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bytes(field.cpu().tolist()))
    return content
