"""Random requests with fixed answers, as vLLM's own Request objects.

`content` has a number per token of prompt and answer for all that its K and V depend on: the tokens
and videos up to it, and who may share them. Two plain requests may share a block where their
contents agree, METok requests where what they kept of a core does as well.
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
from metok_vllm.plan.layout import VideoLayout
from tests.scheduling.settings import MAX_LEN, MAX_VIDEO, Pick

VIDEO_TOKEN, EOS, END = 7, 9, 8
# Stages, keep_ratio, decode_keep. Few, so that requests often prune the same clip alike.
PRUNINGS = (
    ((1, 2, 3), 0.76, 0.0),
    ((2, 3), 0.3, 0.25),
    ((2,), 0.76, 0.0),
    ((3,), 0.76, 1.0),
    ((1, 3), 0.76, 0.0),
    ((1,), 0.76, 0.0),
)
CLIPS = (MAX_VIDEO, 20, 9, 1)
# Separators of each clip where a prompt is `separated`; those clips end in one.
SEPARATORS = (6, 0, 3, 1)


@dataclass(frozen=True)
class PromptSpec:
    """A prompt: `texts[0]`, clip, `texts[1]`, clip, ... `pruning` None turns METok off.

    `separated`: some of its clips have separators. `focus` of a conversation: its first turn ends
    `asked` tokens after the last clip. `branch`: prompts differ six tokens after that turn.
    `evict_after`: new tokens before stage 3.
    """

    texts: tuple[int, ...]
    clips: tuple[int, ...] = ()
    pruning: tuple[tuple[int, ...], float, float] | None = None
    answer: int = 5
    family: int = 0
    ends_itself: bool = False
    resumable: bool = False
    urgency: int = 0
    separated: bool = False
    focus: str = "turn"
    asked: int = 0
    branch: int = 0
    salt: str | None = None
    evict_after: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(self.texts) + sum(CLIPS[clip] for clip in self.clips)


def pick_spec(pick: Pick) -> PromptSpec:
    """Any request that vLLM accepts."""
    clips = tuple(pick(0, len(CLIPS) - 1) for _ in range((0, 1, 2, 2)[pick(0, 3)]))
    # Empty text before, between and behind clips; a prompt is never empty.
    texts = (*(pick(0, 12) for _ in clips), pick(0 if clips else 1, 30))
    prompt = sum(texts) + sum(CLIPS[clip] for clip in clips)
    return PromptSpec(
        texts,
        clips,
        (None, *PRUNINGS)[pick(0, len(PRUNINGS))] if clips else None,
        min(pick(1, 40), MAX_LEN - prompt),
        pick(0, 1),
        bool(pick(0, 1)),
        urgency=pick(0, 2),
        separated=bool(pick(0, 1)),
        evict_after=(0, 0, 6)[pick(0, 2)],
    )


# First turns of conversations: text before each clip, clips, text up to the turn's end, settings.
FIRST_TURNS = (
    ((1,), (0,), 2, PRUNINGS[0], "conversation", False),
    ((0,), (0,), 0, PRUNINGS[3], "conversation", False),
    ((2, 1), (1, 2), 3, PRUNINGS[1], "conversation", True),
    ((0,), (1,), 0, PRUNINGS[2], "video", False),
)


def pick_turn(pick: Pick) -> PromptSpec:
    """A turn of one of a few conversations."""
    before, clips, asked, pruning, focus, separated = FIRST_TURNS[pick(0, len(FIRST_TURNS) - 1)]
    return PromptSpec(
        (*before, asked + 1 + pick(1, 40)),
        clips,
        pruning,
        pick(1, 40),
        ends_itself=bool(pick(0, 1)),
        urgency=pick(0, 2),
        separated=separated,
        focus=focus,
        asked=asked,
        branch=pick(0, 1),
        salt=(None, "salt")[pick(0, 5) == 5],
        evict_after=(0, 6)[clips == (1, 2)],
    )


@dataclass(frozen=True)
class Arrival:
    """A request and the tokens of its answer."""

    spec: PromptSpec
    request: Any
    answer: tuple[int, ...]
    content: npt.NDArray[np.int64]
    core: int | None


def make_arrival(spec: PromptSpec, name: str, block_size: int) -> Arrival:
    """A new request; the prompts of one family have a common prefix."""
    prompt: list[int] = []
    features = []
    seen: dict[int, str] = {}
    for length, clip in zip(spec.texts, (*spec.clips, None), strict=True):
        # Texts repeat after three tokens, so that prompts of one family share their first blocks.
        text = [10 + 3 * spec.family + i % 3 for i in range(length)]
        if clip is None and spec.focus != "turn":
            text[spec.asked :] = [END] * min(len(text) - spec.asked, 1) + [
                10 + (i % 3 if i < 6 else i * (1 + spec.branch) % 5)
                for i in range(len(text) - spec.asked - 1)
            ]
        prompt += text
        if clip is not None:
            feature = _feature(spec, clip, len(prompt))
            seen[len(prompt)] = feature.identifier
            features.append(feature)
            prompt += [VIDEO_TOKEN] * CLIPS[clip]
    answer = [20 + (spec.family + i) % 5 for i in range(spec.answer)]
    if spec.ends_itself:
        answer[spec.answer // 2] = EOS
    params = SamplingParams(max_tokens=spec.answer, stop_token_ids=[EOS])
    request = Request(
        name,
        prompt,
        params,
        None,
        mm_features=features,
        block_hasher=_hasher(block_size),
        resumable=spec.resumable,
        priority=-spec.urgency,
        cache_salt=spec.salt,
    )
    content, so_far = [], hash(spec.salt)
    for position, token in enumerate(prompt + answer):
        so_far = hash((so_far, token, seen.get(position)))
        content.append(so_far)
    core = None
    if spec.focus != "turn" and spec.pruning is not None:
        last = len(prompt) - spec.texts[-1]
        core = last + max(1, spec.asked if spec.focus == "conversation" else 1)
    if core is not None and core >= len(prompt):
        core = None
    return Arrival(spec, request, tuple(answer), np.array(content, dtype=np.int64), core)


def _feature(spec: PromptSpec, clip: int, offset: int) -> Any:
    key = f"clip-{clip}"
    payload = None
    if spec.pruning is not None:
        stages, keep_ratio, decode_keep = spec.pruning
        settings: dict[str, Any] = {
            "stages": stages,
            "keep_ratio": keep_ratio,
            "decode_keep": decode_keep,
        }
        settings |= {"focus": spec.focus, "evict_after": spec.evict_after}
        config = METokConfig().updated(settings)
        payload = selection_payload(config, torch.zeros(0, 1, dtype=torch.long))
    separators = SEPARATORS[clip] if spec.separated else 0
    video = None
    if separators:
        video = VideoLayout(1, 1, 1, before=((0,) * (separators - 1),), after=((0,),))
    field = pack(key, payload, Fraction(3, 5), video=video, ends=(END,))
    item = MultiModalKwargsItem({FIELD: MultiModalFieldElem(field, MultiModalBatchedField())})
    place = PlaceholderRange(offset=offset, length=CLIPS[clip])
    return MultiModalFeatureSpec(item, "video", f"{key} {payload}", place)


@cache
def _hasher(block_size: int) -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)
