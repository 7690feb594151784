"""Why a request was served in a lesser mode than the one asked for, by the names of the reports."""

from __future__ import annotations

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from metok_vllm.config import METokConfig
from metok_vllm.plan.prompt import PRUNE, PromptPlan, Pruning
from metok_vllm.plan.request import RequestPlan


def uses_events(plan: RequestPlan) -> bool:
    """Whether the events of a video decide anything: frames' strides, or the layers' quotas."""
    return 1 in plan.stages or PRUNE in plan.stages


def fallback_reason(plan: RequestPlan, config: METokConfig | None) -> str | None:
    """Why frames were ranked without looking at the question; None if they were not."""
    if config is None or not uses_events(plan):
        return None
    if config.alignment_model is None or config.alignment_mode == "none":
        return "no_towers"
    return "no_query" if plan.query_source == "none" else None


def asks_prompt_logprobs(request: ChatCompletionRequest) -> bool:
    """Whether the engine must give log-probabilities of the prompt: it is then never pruned.

    The rule is that of vLLM's `ChatCompletionRequest.to_sampling_params`.
    """
    if request.use_beam_search:
        return False
    if request.prompt_logprobs is not None:
        return True
    return bool(request.echo) and request.top_logprobs is not None


def unpruned_reason(
    plan: RequestPlan, prompt_plan: PromptPlan | None, whole: str | None
) -> str | None:
    """Why stages 2 and 3 did less than the request's settings say; None if they did it all.

    `whole` is why the engine was asked to leave the prompt alone, None if it was not.
    """
    if whole == "beam_search":
        return whole  # the plan is without these stages already
    wishes = _wishes(plan)
    if wishes is None:
        return None
    if whole is not None:
        return whole
    if prompt_plan is None:
        return "chunked_prefill"
    if prompt_plan.one_step:
        return None
    # In chunks nothing is ranked. Evicting every visual token needs no ranks.
    ranked = PRUNE in wishes.stages or wishes.decode_keep > 0
    return "chunked_prefill" if ranked else None


def prefill_kind(plan: RequestPlan, prompt_tokens: int, step_tokens: int) -> str | None:
    """How a prompt that stages 2 or 3 are on for is prefilled; None where they are off."""
    if _wishes(plan) is None:
        return None
    return "one_step" if prompt_tokens <= step_tokens else "chunked"


def _wishes(plan: RequestPlan) -> Pruning | None:
    wishes = next((video.pruning for video in plan.videos if video.pruning is not None), None)
    return wishes if wishes is not None and wishes.stages else None
