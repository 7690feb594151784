"""vLLM's chat completions with METok's request and response fields.

The protocol is vLLM's. This passes the request's METok settings to the processor, and adds a report
to the response, or to the last chunk of a stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm import metrics
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError, MediaForbiddenError
from metok_vllm.models.request import RequestOptions
from metok_vllm.plan.request import RequestPlan
from metok_vllm.server.chat.last_chunk import extend_last_chunk
from metok_vllm.server.chat.messages import checked_messages, count_videos, question_of
from metok_vllm.server.chat.report import (
    EngineFacts,
    fallback_reason,
    metok_report,
    unpruned_reason,
    uses_events,
    worker_entry,
)
from metok_vllm.server.chat.request_fields import (
    FIELD,
    check_client_options,
    needs_prompt_logprobs,
    request_config,
    without_pruning,
)
from metok_vllm.server.engine_client import RENDER_AGAIN, RetryingClient, call_workers
from metok_vllm.server.middleware.envelope import ENGINE_DEAD, error_body, shortened
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import current

logger = logging.getLogger("vllm.metok")


@dataclass(frozen=True)
class _RenderedRequest:
    """`excluded` is why stages 2 and 3 leave the prompt whole; None if they do not."""

    plan: RequestPlan
    prompt_tokens: int
    excluded: str | None = None


# Set when a request is rendered and read when it is answered, in the same task.
_RENDERED: ContextVar[_RenderedRequest | None] = ContextVar("metok_rendered", default=None)


class MetokServingChat(OpenAIServingChat):
    """vLLM's chat handler with METok, made from an existing one, whose attributes it copies.

    Raises ConfigError and MediaError, which the error handlers answer.
    """

    def __init__(self, stock: OpenAIServingChat, limits: MediaLimits) -> None:
        self.__dict__.update(stock.__dict__)
        self.trust_mm_kwargs = stock.online_renderer.trust_request_mm_kwargs
        # This class checks the client's options itself, before it adds METok's.
        self.online_renderer = copy.copy(stock.online_renderer)
        self.online_renderer.trust_request_mm_kwargs = True
        self.engine_client = RetryingClient(stock.engine_client)
        self.limits = limits
        settings = getattr(self.model_config.hf_config, "metok", None)
        self.metok = METokConfig.from_dict(settings) if settings else None

    async def render_chat_request(self, request: ChatCompletionRequest) -> Any:
        """As vLLM's; passes METok's settings to the processor and stores the request's plan."""
        _RENDERED.set(None)
        RENDER_AGAIN.set(None)
        config = request_config(request, self.metok)
        videos = count_videos(request.messages)
        if videos > self.limits.max_videos:
            metrics.count_rejected("too_many")
            raise MediaForbiddenError(
                f"{videos} videos in one request; this server takes {self.limits.max_videos} "
                "at most (max_videos)",
                "too_many",
            )
        check_client_options(request, self.trust_mm_kwargs)
        self._check_sampling(request)
        requester = current()
        requester.add_salt(request.cache_salt)
        requester.videos = videos
        request.messages = checked_messages(request.messages, requester.tenant)
        excluded = "prompt_logprobs" if needs_prompt_logprobs(request) else None
        if videos and config is not None:
            if request.use_beam_search:
                unpruned = without_pruning(config)
                excluded = "beam_search" if unpruned is not config else None
                config = unpruned
            # A chat template may change the text, so the question is passed on as it was sent.
            options = RequestOptions(config, *question_of(request.messages))
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), FIELD: options}
        result = await super().render_chat_request(request)
        if isinstance(result, tuple):
            for engine_input in result[1]:
                plan = engine_input.pop(FIELD, None)
                if engine_input.get("mm_hashes"):
                    RENDER_AGAIN.set(lambda: self._render_again(request))
                if plan is not None and plan.videos:
                    # vLLM may have truncated text before the videos after the plan was made.
                    plan = plan.moved(
                        place.offset for place in engine_input["mm_placeholders"]["video"]
                    )
                    tokens = self._extract_prompt_len(engine_input)
                    _RENDERED.set(_RenderedRequest(plan, tokens, excluded))
        return result

    async def _render_again(self, request: ChatCompletionRequest) -> Any:
        result = await super().render_chat_request(request)
        if not isinstance(result, tuple):
            raise ConfigError("the request cannot be rendered a second time")
        (engine_input,) = result[1]
        engine_input.pop(FIELD, None)
        return engine_input

    def _check_sampling(self, request: ChatCompletionRequest) -> None:
        """Raise vLLM's errors for sampling values before the media are read."""
        max_tokens = self.model_config.max_model_len
        if request.use_beam_search:
            request.to_beam_search_params(max_tokens, self.default_sampling_params)
        else:
            request.to_sampling_params(max_tokens, self.default_sampling_params)

    async def chat_completion_full_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with `metok` on the response of a request with videos."""
        rendered = _RENDERED.get()
        response = await super().chat_completion_full_generator(*args, **kwargs)
        if rendered is not None and isinstance(response, ChatCompletionResponse):
            # Only a complete answer shows that the videos are encoded and their events stored.
            response.metok = self._report(rendered, await self._events(rendered.plan))
        return response

    def chat_completion_stream_generator(
        self, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's, with `metok` in the last chunk of a request with videos."""
        stream = super().chat_completion_stream_generator(*args, **kwargs)
        rendered = _RENDERED.get()
        return stream if rendered is None else self._with_report(stream, rendered)

    def create_streaming_error_response(
        self, message: str | Exception, *args: Any, **kwargs: Any
    ) -> str:
        """As vLLM's, with METok's message for a dead engine and with long messages cut."""
        if isinstance(message, EngineDeadError):
            return error_body(503, ENGINE_DEAD).decode()
        text: str = super().create_streaming_error_response(message, *args, **kwargs)
        return shortened(text.encode()).decode()

    def _with_report(
        self, stream: AsyncGenerator[str, None], rendered: _RenderedRequest
    ) -> AsyncGenerator[str, None]:
        # A busy engine answers only between two steps. Fetched during the stream, the events do
        # not delay its end.
        return extend_last_chunk(
            stream,
            lambda: self._events(rendered.plan),
            lambda events: {FIELD: self._report(rendered, events)},
        )

    def _report(self, rendered: _RenderedRequest, events: list[Any]) -> dict[str, Any]:
        plan, tokens = rendered.plan, rendered.prompt_tokens
        engine = EngineFacts.of(self.engine_client.vllm_config, self.metok)
        prompt_plan = None if rendered.excluded else plan.prompt_plan(tokens)
        fallback = fallback_reason(plan, self.metok)
        unpruned = unpruned_reason(plan, rendered.excluded)
        metrics.count_request(plan, prompt_plan)
        for reason in (fallback, unpruned):
            if reason is not None:
                metrics.count_fallback(reason)
        return metok_report(
            plan,
            prompt_plan,
            events,
            engine=engine,
            prompt_tokens=tokens,
            fallback=fallback,
            unpruned=unpruned,
        )

    async def _events(self, plan: RequestPlan) -> list[Any]:
        if not uses_events(plan):
            return []
        keys = [video.key for video in plan.videos]
        try:
            engines = await call_workers(self.engine_client, "metok_events", keys)
        except Exception:
            # The answer is complete, so it is sent with a report without events.
            logger.warning("The events of a request could not be fetched.", exc_info=True)
            return []
        workers = [worker for engine in engines for worker in engine]
        for key in keys:
            entry = worker_entry(workers, key)
            if entry is not None:
                metrics.observe_video(entry, plan.stages)
        return workers
