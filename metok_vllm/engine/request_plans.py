"""Plans of stages 2 and 3: made by the scheduler, sent to the workers with each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger

from metok_vllm.models.request import FIELD, read_focus, read_pruning
from metok_vllm.plan.focus import Focus
from metok_vllm.plan.prompt import PromptPlan, Pruning

logger = init_logger("vllm.metok")

ATTRIBUTE = "metok"  # of a SchedulerOutput; pickled with it


@dataclass(frozen=True)
class StagedSchedulerOutput:
    """METok's part of a SchedulerOutput.

    `plans` are those of requests that are new to the workers, `buffer_rows` the first row in the
    prefill buffer of the step's prompts that have rows there, `trims` the number of blocks that a
    request keeps, by cache group. `features` are media of requests that have to be encoded after
    all: the worker got them without data, because their prefix was cached. The pool's null block is
    not counted; the prefix counts are those of requests that went on from a recorded prompt.
    """

    plans: Mapping[str, PromptPlan]
    buffer_rows: Mapping[str, int]
    trims: Mapping[str, tuple[int, ...]]
    total_blocks: int
    free_blocks: int
    freed_blocks: int
    features: Mapping[str, Sequence[Any]]
    prefix_hits: int
    prefix_tokens: int
    prefix_records: int


def plan_of(
    token_ids: Sequence[int],
    features: Sequence[Any] | None,
    sampling_params: Any,
    block_size: int,
) -> PromptPlan | None:
    """The plan of a request; None where stages 2 and 3 leave it alone.

    `features` are vLLM's MultiModalFeatureSpec. Log-probabilities of the prompt need every row in
    every layer, so such a request is not pruned.
    """
    if not features or getattr(sampling_params, "prompt_logprobs", None) is not None:
        return None
    videos, end, focus = [], 0, Focus()
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        if feature.modality != "video":
            continue
        found = _pruning_of(feature)
        if found is None:
            return None
        start, length = int(feature.mm_position.offset), int(feature.mm_position.length)
        key, pruning, focus = found
        if start < end or length < 1 or start + length > len(token_ids):
            return None
        # A video that does not end in a separator ends in a visual token.
        if pruning.separators + (not pruning.ends_in_separator) > length:
            return None
        end = start + length
        videos.append((key, start, length, pruning))
    return PromptPlan.of(len(token_ids), videos, focus.core_tokens(token_ids, end), block_size)


def _pruning_of(feature: Any) -> tuple[str, Pruning, Focus] | None:
    """Key and settings of a video; None where it is dense or its field cannot be read."""
    if feature.data is None:
        return None
    try:
        field = feature.data[FIELD].data
        pruned = read_pruning(field)
        if pruned is None:
            return None
        if not _is_valid(*pruned):
            raise ValueError("key, share or separators")
        found = (*pruned, Focus(*read_focus(field)))
    except Exception as error:
        # A renderer without METok or of another version may have made the features, and an
        # exception in the scheduler ends the engine.
        logger.warning_once(
            "METok does not prune requests whose videos were prepared by another renderer (%s).",
            type(error).__name__,
        )
        return None
    return found


def _is_valid(key: object, pruning: Pruning) -> bool:
    separators, last = pruning.separators, pruning.ends_in_separator
    counted = isinstance(separators, int) and isinstance(last, bool) and separators >= last
    counted = counted and isinstance(pruning.evict_after, int) and pruning.evict_after >= 0
    return isinstance(key, str) and 0 <= pruning.key_share <= 1 and counted
