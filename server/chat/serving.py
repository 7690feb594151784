"""vLLM's chat completions with METok's request and response fields.

Everything of the protocol is vLLM's: this adds `metok` to the request, hands it to the processor,
and adds what METok did to the response, or to the last chunk of a stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm import metrics
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError, MediaForbiddenError
from metok_vllm.models.processing import RequestOptions
from metok_vllm.plan.request import RequestPlan
from metok_vllm.server.chat.content_parts import checked_messages
from metok_vllm.server.chat.fallbacks import (
    asks_prompt_logprobs,
    fallback_reason,
    unpruned_reason,
    uses_events,
)
from metok_vllm.server.chat.field_schema import request_schema
from metok_vllm.server.chat.last_chunk import with_more_in_last_chunk
from metok_vllm.server.chat.lost_media import RENDER_AGAIN, PersistentClient
from metok_vllm.server.chat.messages import count_videos, question_of
from metok_vllm.server.chat.options import (
    OPTION,
    check_client_options,
    request_config,
    without_pruning,
)
from metok_vllm.server.chat.report import EngineFacts, metok_report, worker_entry
from metok_vllm.server.engine_calls import ask_workers
from metok_vllm.server.middleware.envelope import ENGINE_DEAD, error_body, shortened
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import current

logger = logging.getLogger("vllm.metok")


class MetokChatRequest(ChatCompletionRequest):  # type: ignore[misc]
    """A chat completion request that may carry METok settings."""

    metok: Annotated[dict[str, Any], WithJsonSchema(request_schema())] | None = Field(
        default=None, description="METok settings for this request; see docs/metok.md."
    )


@dataclass(frozen=True)
class _Pending:
    """`whole` says why stages 2 and 3 leave the prompt alone; None: as the plan says."""

    plan: RequestPlan
    prompt_tokens: int
    whole: str | None = None


# Set while a request is rendered, read when its answer is put together, in the same task.
_pending: ContextVar[_Pending | None] = ContextVar("metok_pending", default=None)


class MetokServingChat(OpenAIServingChat):  # type: ignore[misc]
    """vLLM's handler, wrapped around an existing one whose settings it shares.

    Raises ConfigError and MediaError, which the endpoint turns into envelopes.
    """

    def __init__(self, stock: OpenAIServingChat, limits: MediaLimits) -> None:
        self.__dict__.update(stock.__dict__)
        self.trust_mm_kwargs = stock.online_renderer.trust_request_mm_kwargs
        # Client options are checked here, before METok's own join them.
        self.online_renderer = copy.copy(stock.online_renderer)
        self.online_renderer.trust_request_mm_kwargs = True
        self.engine_client = PersistentClient(stock.engine_client)
        self.limits = limits
        settings = getattr(self.model_config.hf_config, "metok", None)
        self.metok = METokConfig.from_dict(settings) if settings else None

    async def render_chat_request(self, request: ChatCompletionRequest) -> Any:
        """As vLLM's, with METok's settings for the processor and its plan kept for the answer."""
        _pending.set(None)
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
        whole = "prompt_logprobs" if asks_prompt_logprobs(request) else None
        if videos and config is not None:
            if request.use_beam_search:
                asked, config = config, without_pruning(config)
                whole = "beam_search" if config is not asked else None
            # A chat template may change the text, so the question is passed on as it was sent.
            options = RequestOptions(config, *question_of(request.messages))
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), OPTION: options}
        result = await super().render_chat_request(request)
        if isinstance(result, tuple):
            for engine_input in result[1]:
                plan = engine_input.pop(OPTION, None)
                if engine_input.get("mm_hashes"):
                    RENDER_AGAIN.set(lambda: self._render_again(request))
                if plan is not None and plan.videos:
                    # Text may have been cut away before the videos since the plan was made.
                    plan = plan.moved(
                        place.offset for place in engine_input["mm_placeholders"]["video"]
                    )
                    tokens = self._extract_prompt_len(engine_input)
                    _pending.set(_Pending(plan, tokens, whole))
        return result

    async def _render_again(self, request: ChatCompletionRequest) -> Any:
        result = await super().render_chat_request(request)
        if not isinstance(result, tuple):
            raise ConfigError("the request cannot be rendered a second time")
        (engine_input,) = result[1]
        engine_input.pop(OPTION, None)
        return engine_input

    def _check_sampling(self, request: ChatCompletionRequest) -> None:
        """Raise what vLLM raises for sampling values, before media are read for nothing."""
        most = self.model_config.max_model_len
        if request.use_beam_search:
            request.to_beam_search_params(most, self.default_sampling_params)
        else:
            request.to_sampling_params(most, self.default_sampling_params)

    async def chat_completion_full_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with `metok` on the response of a request with videos."""
        pending = _pending.get()
        response = await super().chat_completion_full_generator(*args, **kwargs)
        if pending is not None and isinstance(response, ChatCompletionResponse):
            # Nothing is heard of a request between its start and its whole answer: only now are
            # its events there for sure.
            response.metok = self._report(pending, await self._events(pending.plan))
        return response

    def chat_completion_stream_generator(
        self, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's, with `metok` in the last chunk of a request with videos."""
        stream = super().chat_completion_stream_generator(*args, **kwargs)
        pending = _pending.get()
        return stream if pending is None else self._with_report(stream, pending)

    def create_streaming_error_response(
        self, message: str | Exception, *args: Any, **kwargs: Any
    ) -> str:
        """As vLLM's; a client is told that the engine is dead, not to read the server's log."""
        if isinstance(message, EngineDeadError):
            return error_body(503, ENGINE_DEAD).decode()
        text: str = super().create_streaming_error_response(message, *args, **kwargs)
        return shortened(text.encode()).decode()

    def _with_report(
        self, stream: AsyncGenerator[str, None], pending: _Pending
    ) -> AsyncGenerator[str, None]:
        # The engine answers between two steps, and under load a step holds somebody's prompt: who
        # asks it at the end makes the client wait for that, and start its next request later.
        async def events() -> list[Any]:
            return await self._events(pending.plan)

        def report(events: list[Any]) -> dict[str, Any]:
            return {OPTION: self._report(pending, events)}

        return with_more_in_last_chunk(stream, events, report)

    def _report(self, pending: _Pending, events: list[Any]) -> dict[str, Any]:
        plan, tokens = pending.plan, pending.prompt_tokens
        engine = EngineFacts.of(self.engine_client.vllm_config, self.metok)
        prompt_plan = None if pending.whole else plan.prompt_plan(tokens, engine.step_tokens)
        fallback = fallback_reason(plan, self.metok)
        unpruned = unpruned_reason(plan, prompt_plan, pending.whole)
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
            engines = await ask_workers(self.engine_client, "metok_events", keys)
        except Exception:
            # The answer is there; a report without events is better than an error in its place.
            logger.warning("The events of a request could not be fetched.", exc_info=True)
            return []
        workers = [answer for engine in engines for answer in engine]
        for key in keys:
            entry = worker_entry(workers, key)
            if entry is not None:
                metrics.observe_video(entry, plan.stages)
        return workers
