"""vLLM's chat completions with METok's request and response fields.

The protocol is vLLM's. This passes the request's METok settings to the processor, and adds a report
to the response, or to the last chunks of a stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncGenerator
from contextvars import ContextVar
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
from metok_vllm.server.chat import image_runs, response_headers
from metok_vllm.server.chat.aliases import NO_ALIASES, ModelAliases
from metok_vllm.server.chat.last_chunk import extend_last_chunks
from metok_vllm.server.chat.messages import (
    checked_messages,
    count_videos,
    question_of,
    videos_of_images,
)
from metok_vllm.server.chat.rendered import NotApplied, RenderedRequest
from metok_vllm.server.chat.request_fields import (
    FIELD,
    check_client_options,
    needs_prompt_logprobs,
    request_config,
    without_pruning,
)
from metok_vllm.server.engine_client import RENDER_AGAIN, RetryingClient
from metok_vllm.server.middleware.envelope import ENGINE_DEAD, error_body, shortened
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.requester import current

logger = logging.getLogger("vllm.metok")


# Set when a request is rendered and read when it is answered, in the same task.
_RENDERED: ContextVar[RenderedRequest | NotApplied | None] = ContextVar(
    "metok_rendered", default=None
)


class MetokServingChat(OpenAIServingChat):
    """vLLM's chat handler with METok, made from an existing one, whose attributes it copies.

    Raises ConfigError and MediaError, which the error handlers answer.
    """

    # Whether the log says already that a client seems to send videos as images.
    warned_of_images = False

    def __init__(
        self,
        stock: OpenAIServingChat,
        limits: MediaLimits,
        image_runs_as_video: int = 0,
        aliases: ModelAliases = NO_ALIASES,
    ) -> None:
        self.__dict__.update(stock.__dict__)
        self.trust_mm_kwargs = stock.online_renderer.trust_request_mm_kwargs
        # This class checks the client's options itself, before it adds METok's.
        self.online_renderer = copy.copy(stock.online_renderer)
        self.online_renderer.trust_request_mm_kwargs = True
        self.engine_client = RetryingClient(stock.engine_client)
        self.limits = limits
        self.image_runs_as_video = image_runs_as_video
        self.aliases = aliases
        settings = getattr(self.model_config.hf_config, "metok", None)
        self.metok = METokConfig.from_dict(settings) if settings else None

    async def render_chat_request(self, request: ChatCompletionRequest) -> Any:
        """As vLLM's; passes METok's settings to the processor and stores the request's plan."""
        _RENDERED.set(None)
        RENDER_AGAIN.set(None)
        config = request_config(request, self.metok, self.aliases)
        requester = current()
        requester.add_salt(request.cache_salt)
        messages = checked_messages(request.messages, requester.tenant)
        longest_run = image_runs.longest_run(messages)
        if self.image_runs_as_video:
            messages = image_runs.fold_runs(messages, self.image_runs_as_video)
        elif self.metok is not None:
            self._warn_of_images(longest_run)
        videos = requester.videos = count_videos(messages)
        if videos > self.limits.max_videos:
            metrics.count_rejected("too_many")
            raise MediaForbiddenError(
                f"{videos} videos in one request; this server takes {self.limits.max_videos} "
                f"at most ({flag_of('max_videos')})",
                "too_many",
            )
        check_client_options(request, self.trust_mm_kwargs)
        self._check_sampling(request)
        request.messages = messages
        excluded = "prompt_logprobs" if needs_prompt_logprobs(request) else None
        if videos and config is not None:
            if request.use_beam_search:
                unpruned = without_pruning(config)
                excluded = "beam_search" if unpruned is not config else None
                config = unpruned
            # A chat template may change the text, so the question is passed on as it was sent.
            options = RequestOptions(config, *question_of(request.messages, config.focus))
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
                    of_images = videos_of_images(messages)
                    _RENDERED.set(RenderedRequest(plan, tokens, excluded, of_images))
                    response_headers.announce(plan)
            if not videos and self._asks_for_metok(request):
                _RENDERED.set(NotApplied(image_runs.no_video_reason(longest_run)))
        return result

    def _asks_for_metok(self, request: ChatCompletionRequest) -> bool:
        return getattr(request, FIELD, None) is not None or request.model in self.aliases

    def _warn_of_images(self, longest_run: int) -> None:
        if longest_run >= image_runs.SUSPECT_RUN and not self.warned_of_images:
            self.warned_of_images = True
            logger.warning(
                "A request has %d images in a row, which METok does not compress. If clients send "
                "the frames of a video so, --metok-image-runs-as-video %d reads them as a video.",
                longest_run,
                image_runs.SUSPECT_RUN,
            )

    def _is_model_supported(self, model_name: str | None) -> bool:
        return model_name in self.aliases or bool(super()._is_model_supported(model_name))

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
        args = self._prepared(rendered, *args)
        response = await super().chat_completion_full_generator(*args, **kwargs)
        if rendered is not None and isinstance(response, ChatCompletionResponse):
            # Only a complete answer shows that the videos are encoded and their events stored.
            events = await rendered.events(self.engine_client)
            report = rendered.report(self.engine_client, self.metok, events)
            response.metok = response.choices[0].metok = report
        return response

    def chat_completion_stream_generator(
        self, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's, with `metok` in the last chunks of a request with videos."""
        rendered = _RENDERED.get()
        args = self._prepared(rendered, *args)
        stream = super().chat_completion_stream_generator(*args, **kwargs)
        return stream if rendered is None else self._with_report(stream, rendered)

    def _prepared(
        self,
        rendered: RenderedRequest | NotApplied | None,
        request: Any,
        outputs: Any,
        request_id: str,
        model_name: str,
        *more: Any,
    ) -> tuple[Any, ...]:
        """The arguments of vLLM's generators: an alias in place of the first served name, and
        outputs that the report knows."""
        name = request.model if request.model in self.aliases else model_name
        outputs = outputs if rendered is None else rendered.noting(outputs)
        return (request, outputs, request_id, name, *more)

    def create_streaming_error_response(
        self, message: str | Exception, *args: Any, **kwargs: Any
    ) -> str:
        """As vLLM's, with METok's message for a dead engine and with long messages cut."""
        if isinstance(message, EngineDeadError):
            return error_body(503, ENGINE_DEAD).decode()
        text: str = super().create_streaming_error_response(message, *args, **kwargs)
        return shortened(text.encode()).decode()

    def _with_report(
        self, stream: AsyncGenerator[str, None], rendered: RenderedRequest | NotApplied
    ) -> AsyncGenerator[str, None]:
        # A busy engine answers only between two steps. Fetched during the stream, the events do
        # not delay its end.
        return extend_last_chunks(
            stream,
            FIELD,
            lambda: rendered.events(self.engine_client),
            lambda events: rendered.report(self.engine_client, self.metok, events),
        )
