"""A request's METok settings, from the API server through the processor to the engine.

They are parsed and checked once. The processor gets them as `RequestOptions`; the engine gets JSON
beside each video's pixels: the worker reads how to encode the video, the scheduler how to prune it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.methods import METOK, TURN, VIDEO
from metok_vllm.errors import ConfigError
from metok_vllm.models.query import FOCUS_TEXT, NO_QUESTION, USER_TURN, QueryFinder
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import EVICT, PRUNE, Pruning

FIELD = "metok_request"  # of a video, beside its pixels
# Once a request is parsed, `enabled` and `preset` have been applied to the other fields.
SELECTION_FIELDS = REQUEST_FIELDS - {"enabled", "preset"}
DEFAULTS = METokConfig()
OPTION = "metok"  # in mm_processor_kwargs, and of the plan in the processor's result
VIDEOS = "metok_videos"  # key in the processor's own options


@dataclass(frozen=True)
class RequestOptions:
    """Settings of a request that our server has parsed already, and its question.

    `query` empty: the question is read from the prompt. `source` is reported as `query_source`.
    """

    config: METokConfig
    query: str = ""
    source: str = USER_TURN

    def question(self, finder: QueryFinder, prompt_ids: Sequence[int]) -> tuple[str, str]:
        """The text that selects, and its source."""
        if self.config.focus_text is not None:
            return self.config.focus_text, FOCUS_TEXT
        if self.config.focus == VIDEO:
            return "", NO_QUESTION
        if self.query:
            return self.query, self.source
        return finder.find(prompt_ids, self.config.focus)


@dataclass(frozen=True)
class VideoOptions:
    """Settings of a request's videos inside the processor. `payload` None: the dense input.

    `keys` are each video's key in vLLM's caches and its content's key.
    """

    config: METokConfig
    payload: str | None
    keys: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class EncodeRequest:
    """One video to encode. `key` identifies it in vLLM's caches, question included.

    `content` identifies it without question and settings: by its bytes (or the client's id) and
    its sampling. None keeps its features out of the feature cache.
    """

    key: str
    config: METokConfig
    query_ids: tuple[tuple[int, ...], ...]  # [W, L]; empty without towers or without a question
    content: str | None = None
    video: VideoLayout | None = None  # None where the caller has it


def options_of(base: METokConfig, option: object) -> RequestOptions:
    """The options of a request; our server's are parsed, those of other callers are a mapping."""
    if option is None:
        return RequestOptions(base)
    if isinstance(option, RequestOptions):
        return option
    if not isinstance(option, Mapping):
        raise VLLMValidationError(f"metok must be an object, got {type(option).__name__}")
    try:
        return RequestOptions(base.for_request(option))
    except ConfigError as error:
        raise VLLMValidationError(str(error), parameter=f"metok.{error.field}") from error


def selection_payload(config: METokConfig, query_ids: Tensor) -> str:
    """Every setting that affects which tokens are selected, as canonical JSON for cache keys."""
    if config.rule != METOK:  # other methods read nothing else, the question included
        settings = {"rule": config.rule, "rule_keep": config.rule_keep, "query_ids": []}
        return json.dumps(settings, sort_keys=True)
    settings = {name: getattr(config, name) for name in SELECTION_FIELDS - {"rule_keep"}}
    del settings["focus_text"]  # it is the query
    if PRUNE not in config.stages:
        del settings["keep_ratio"]
    if EVICT not in config.stages:
        del settings["decode_keep"], settings["evict_after"]
    return json.dumps({**settings, "query_ids": query_ids.tolist()}, sort_keys=True)


def video_key(content: str, payload: str | None) -> str:
    """Key of a video in vLLM's caches: its content's alone where it is dense."""
    if payload is None:
        return content
    return hashlib.sha256(json.dumps([content, payload]).encode()).hexdigest()


def pack(
    key: str,
    payload: str | None,
    key_share: Fraction = Fraction(1),
    content: str | None = None,
    video: VideoLayout | None = None,
    ends: Sequence[int] = (),
) -> Tensor:
    """The field of one video, uint8 [bytes]; `payload` None means the model's own dense input.

    `video` is its layout, so that workers need no tokenizer; `ends` are the token ids that end a
    user's message. The other values are those of `EncodeRequest`.
    """
    fields = {
        "key": key,
        "payload": payload,
        "key_share": key_share.as_integer_ratio(),
        "content": content,
        "ends": list(ends),
        "separators": 0 if video is None else video.separators,
        "ends_in_separator": video is not None and video.ends_in_separator,
        "video": None if video is None else asdict(video),
    }
    return torch.frombuffer(bytearray(json.dumps(fields).encode()), dtype=torch.uint8)


def unpack(field: Tensor | Sequence[Tensor], base: METokConfig) -> list[EncodeRequest | None]:
    """The requests of a batch of videos, None where a video is dense."""
    return [_unpack_one(item, base) for item in field]


def read_pruning(field: Tensor) -> tuple[str, Pruning] | None:
    """Key of a video and its settings for stages 2 and 3; None for the dense input."""
    fields = _fields(field)
    if fields["payload"] is None:
        return None
    config = DEFAULTS.restored(_settings_of(fields["payload"]))
    pruning = Pruning.of(
        config,
        Fraction(*fields["key_share"]),
        fields["separators"],
        fields["ends_in_separator"],
    )
    return fields["key"], pruning


def read_focus(field: Tensor) -> tuple[str, tuple[int, ...]]:
    """A video's `focus`, and the token ids that end a user's message; no video may be dense."""
    fields = _fields(field)
    return json.loads(fields["payload"]).get("focus", TURN), tuple(fields["ends"])


def read_layout(field: Tensor) -> VideoLayout | None:
    """The layout of a video with METok; None for the dense input."""
    fields = _fields(field)
    return None if fields["payload"] is None else _layout_of(fields)


def _layout_of(fields: Mapping[str, Any]) -> VideoLayout | None:
    video = fields["video"]
    if video is None:
        return None
    tuples = {name: tuple(map(tuple, video[name])) for name in ("before", "after")}
    return VideoLayout(**{**video, **tuples, "reductions": tuple(video["reductions"])})


def _settings_of(payload: str) -> dict[str, Any]:
    """Fields of a METokConfig in a payload; the API server has checked them."""
    settings: dict[str, Any] = json.loads(payload)
    return {name: value for name, value in settings.items() if name in SELECTION_FIELDS}


def _unpack_one(item: Tensor, base: METokConfig) -> EncodeRequest | None:
    fields = _fields(item)
    if fields["payload"] is None:
        return None
    query_ids = tuple(tuple(row) for row in json.loads(fields["payload"])["query_ids"])
    config = base.restored(_settings_of(fields["payload"]))
    return EncodeRequest(fields["key"], config, query_ids, fields["content"], _layout_of(fields))


def _fields(item: Tensor) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(bytes(item.cpu().tolist()))
    return fields
