"""The plan of a request, as scheduler and worker each read it from the same request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger

from metok_vllm.models.request import FIELD, read_pruning
from metok_vllm.plan.prompt import PromptPlan, Pruning

logger = init_logger("vllm.metok")


def step_tokens(vllm_config: Any) -> int:
    """Prompt tokens that one step can take beside the decodes of other requests.

    A prompt that needs a whole step to itself would wait until nothing else runs, and whoever comes
    after it too.
    """
    scheduler = vllm_config.scheduler_config
    budget = int(scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens)
    return budget - min(int(scheduler.max_num_seqs), budget // 4)


def plan_of(
    prompt_tokens: int, features: Sequence[Any] | None, sampling_params: Any, step: int
) -> PromptPlan | None:
    """What stages 2 and 3 do to a request; None where they leave it alone.

    `features` are vLLM's MultiModalFeatureSpec. Log-probabilities of the prompt need every row of
    it in every layer, so a request for them is not pruned.
    """
    if not features or getattr(sampling_params, "prompt_logprobs", None) is not None:
        return None
    videos, end = [], 0
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        if feature.modality != "video":
            continue
        wishes = _wishes(feature)
        if wishes is None:
            return None
        start, length = int(feature.mm_position.offset), int(feature.mm_position.length)
        if start < end or length < 1 or start + length > prompt_tokens:
            return None
        end = start + length
        videos.append((wishes[0], start, length, wishes[1]))
    return PromptPlan.of(prompt_tokens, videos, step)


def _wishes(feature: Any) -> tuple[str, Pruning] | None:
    """Key and wishes of a video; None where it is dense or tells nothing that can be read."""
    if feature.data is None:
        # A worker is not sent a video that the prefix cache covers, and no request with a plan
        # reads that cache.
        return None
    try:
        found = read_pruning(feature.data[FIELD].data)
        if found is not None and not (isinstance(found[0], str) and 0 <= found[1].key_share <= 1):
            raise ValueError("key or share")
    except Exception as error:
        # Features may come from a renderer without METok or of another version, and an exception
        # in the scheduler ends the engine.
        logger.warning_once(
            "METok leaves requests alone whose videos were prepared by another renderer (%s).",
            type(error).__name__,
        )
        return None
    return found
