"""The plan of a request, as scheduler and worker each read it from the same request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metok_vllm.models.request import FIELD, read_pruning
from metok_vllm.prompt_plan import PromptPlan


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
    videos = []
    for feature in features:
        if feature.modality != "video":
            continue
        if feature.data is None:
            # A worker is not sent a video that the prefix cache covers, and no request with a plan
            # reads that cache.
            return None
        wishes = read_pruning(feature.data[FIELD].data)
        if wishes is None:
            return None
        key, pruning = wishes
        place = feature.mm_position
        videos.append((key, int(place.offset), int(place.length), pruning))
    return PromptPlan.of(prompt_tokens, videos, step)
