"""Random requests whose answers are fixed beforehand, as vLLM's own Request objects.

`content` says for every token of prompt and answer what its K and V depend on: all tokens and
videos up to it. Two plain requests may share a block exactly where their contents agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from metok_vllm.config import METokConfig
from metok_vllm.models.request import FIELD, pack, selection_payload
from tests.scheduling.settings import MAX_LEN, MAX_VIDEO, Pick

VIDEO_TOKEN, EOS = 7, 9
# Stages, keep_ratio, decode_keep. Few, so that requests often want the same of the same clip.
WISHES = (
    ((1, 2, 3), 0.76, 0.0),
    ((2, 3), 0.3, 0.25),
    ((2,), 0.76, 0.0),
    ((3,), 0.76, 1.0),
    ((1, 3), 0.76, 0.0),
    ((1,), 0.76, 0.0),
)
CLIPS = (MAX_VIDEO, 20, 9, 1)


@dataclass(frozen=True)
class Ask:
    """A prompt: `texts[0]`, clip, `texts[1]`, clip, ... `wishes` None turns METok off."""

    texts: tuple[int, ...]
    clips: tuple[int, ...] = ()
    wishes: tuple[tuple[int, ...], float, float] | None = None
    answer: int = 5
    family: int = 0
    ends_itself: bool = False
    resumable: bool = False
    urgency: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(self.texts) + sum(CLIPS[clip] for clip in self.clips)


def pick_ask(pick: Pick) -> Ask:
    """Any request that vLLM would accept."""
    clips = tuple(pick(0, len(CLIPS) - 1) for _ in range((0, 1, 2, 2)[pick(0, 3)]))
    # Empty text before, between and behind clips; a prompt is never empty.
    texts = (*(pick(0, 12) for _ in clips), pick(0 if clips else 1, 30))
    prompt = sum(texts) + sum(CLIPS[clip] for clip in clips)
    return Ask(
        texts,
        clips,
        (None, *WISHES)[pick(0, len(WISHES))] if clips else None,
        min(pick(1, 40), MAX_LEN - prompt),
        pick(0, 1),
        bool(pick(0, 1)),
        urgency=pick(0, 2),
    )


@dataclass(frozen=True)
class Arrival:
    """A request with all that it will ever say."""

    ask: Ask
    request: Any
    answer: tuple[int, ...]
    content: npt.NDArray[np.int64]


def make_arrival(ask: Ask, name: str, block_size: int) -> Arrival:
    """A fresh request for an ask; asks of one family begin alike."""
    prompt: list[int] = []
    features = []
    seen: dict[int, str] = {}
    for length, clip in zip(ask.texts, (*ask.clips, None), strict=True):
        # Texts repeat after three tokens, so that prompts of one family share their first blocks.
        prompt += [10 + 3 * ask.family + i % 3 for i in range(length)]
        if clip is not None:
            feature = _feature(ask, clip, len(prompt))
            seen[len(prompt)] = feature.identifier
            features.append(feature)
            prompt += [VIDEO_TOKEN] * CLIPS[clip]
    answer = [20 + (ask.family + i) % 5 for i in range(ask.answer)]
    if ask.ends_itself:
        answer[ask.answer // 2] = EOS
    params = SamplingParams(max_tokens=ask.answer, stop_token_ids=[EOS])
    request = Request(
        name,
        prompt,
        params,
        None,
        mm_features=features,
        block_hasher=_hasher(block_size),
        resumable=ask.resumable,
        priority=-ask.urgency,
    )
    content, so_far = [], 0
    for position, token in enumerate(prompt + answer):
        so_far = hash((so_far, token, seen.get(position)))
        content.append(so_far)
    return Arrival(ask, request, tuple(answer), np.array(content, dtype=np.int64))


def _feature(ask: Ask, clip: int, offset: int) -> Any:
    key = f"clip-{clip}"
    payload = None
    if ask.wishes is not None:
        stages, keep_ratio, decode_keep = ask.wishes
        settings = {"stages": stages, "keep_ratio": keep_ratio, "decode_keep": decode_keep}
        config = METokConfig().updated(settings)
        payload = selection_payload(config, torch.zeros(0, 1, dtype=torch.long))
    field = pack(key, payload, Fraction(3, 5))
    item = MultiModalKwargsItem({FIELD: MultiModalFieldElem(field, MultiModalBatchedField())})
    place = PlaceholderRange(offset=offset, length=CLIPS[clip])
    return MultiModalFeatureSpec(item, "video", f"{key} {payload}", place)


@cache
def _hasher(block_size: int) -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)
