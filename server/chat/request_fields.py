"""The request fields that METok adds or restricts.

Only chat completions take METok's settings and names of media. Other endpoints use the server's
settings and refuse these fields, which vLLM's schemas there would ignore silently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute, request_response
from pydantic import Field, TypeAdapter, WithJsonSchema
from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.environment import help_of
from metok_vllm.config.methods import FASTV, FOCUSES, REDUCTIONS, RULES
from metok_vllm.config.presets import PRESETS
from metok_vllm.errors import ConfigError
from metok_vllm.plan.prompt import EVICT, PRUNE
from metok_vllm.server.chat.aliases import NO_ALIASES, ModelAliases
from metok_vllm.server.chat.messages import UUID, has_named_media, objects
from metok_vllm.video.requester import current

FIELD = "metok"
CHAT = "/v1/chat/completions"
# SageMaker's single path: a body with messages goes to chat completions.
INVOCATIONS = "/invocations"
# The output of another server's renderer. The client chooses its media hashes, which could be those
# of other clients' media in the caches.
FEATURES, TOKENS = "features", "/inference/v1/generate"
# Video options that a client may set without trusted multimodal options; MediaLimits bound both.
OPEN_VIDEO_OPTIONS = frozenset({"num_frames", "fps"})

Handler = Callable[[Request], Awaitable[Response]]


def request_schema() -> dict[str, Any]:
    """The JSON schema of the `metok` object: each field with its type and help text.

    It has no defaults, because the server's settings are the defaults.
    """
    types = TypeAdapter(METokConfig).json_schema()["properties"]
    properties = {}
    for field in fields(METokConfig):
        if field.name in REQUEST_FIELDS:
            kept = {k: v for k, v in types[field.name].items() if k not in ("default", "title")}
            properties[field.name] = {**kept, "description": help_of(field)}
    properties["preset"]["enum"] = list(PRESETS)
    properties["rule"]["enum"] = list(RULES)
    properties["reduce"]["enum"] = list(REDUCTIONS)
    properties["focus"]["enum"] = list(FOCUSES)
    return {"type": "object", "properties": properties, "additionalProperties": False}


class MetokChatRequest(ChatCompletionRequest):
    """A chat completion request that may carry METok settings."""

    metok: Annotated[dict[str, Any], WithJsonSchema(request_schema())] | None = Field(
        default=None, description="METok settings for this request; see docs/metok.md."
    )


def request_config(
    request: ChatCompletionRequest,
    config: METokConfig | None,
    aliases: ModelAliases = NO_ALIASES,
) -> METokConfig | None:
    """Settings of the request on top of the server's `config`, None without METok.

    Raises ConfigError.
    """
    overrides = getattr(request, FIELD, None)
    if overrides is not None and not isinstance(overrides, dict):
        raise ConfigError("metok must be an object of settings", FIELD)
    if config is None:
        if overrides is None:
            return None
        raise ConfigError(
            "This model is served without METok; start the server with 'metok serve' and a "
            "model METok supports to use the metok field",
            FIELD,
        )
    try:
        return config.for_request(aliases.settings(request.model, overrides) or {})
    except ConfigError as error:
        raise ConfigError(str(error), f"{FIELD}.{error.field}") from error


def without_pruning(config: METokConfig) -> METokConfig:
    """The configuration with stages 2 and 3 off; `config` itself where neither runs.

    Beam search sends every beam's tokens as a new prompt, which must not be ranked as a question.
    Raises ConfigError where another method prunes.
    """
    if config.enabled and config.rule == FASTV:
        raise ConfigError(f"rule {FASTV} cannot be combined with beam search", f"{FIELD}.rule")
    if not {PRUNE, EVICT} & set(config.running_stages):
        return config
    return replace(config, stages=tuple(s for s in config.stages if s not in (PRUNE, EVICT)))


def needs_prompt_logprobs(request: ChatCompletionRequest) -> bool:
    """Whether the engine must return log-probabilities of the prompt, which is then not pruned.

    Follows vLLM's `ChatCompletionRequest.to_sampling_params`.
    """
    if request.use_beam_search:
        return False
    if request.prompt_logprobs is not None:
        return True
    return bool(request.echo) and request.top_logprobs is not None


def check_client_options(request: ChatCompletionRequest, trust: bool) -> None:
    """Raises ConfigError or vLLM's own error for multimodal options a client may not set."""
    options = request.mm_processor_kwargs
    if any(key.startswith(FIELD) for key in _keys(options)):
        raise ConfigError(
            "METok's settings belong in the metok field, not in mm_processor_kwargs",
            "mm_processor_kwargs",
        )
    media = request.media_io_kwargs or {}
    is_open = set(media) <= {"video"} and set(media.get("video") or {}) <= OPEN_VIDEO_OPTIONS
    validate_request_mm_kwargs(
        mm_processor_kwargs=options,
        media_io_kwargs=None if is_open else media,
        trust_request_mm_kwargs=trust,
    )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def refuse_chat_fields(app: FastAPI, aliases: ModelAliases = NO_ALIASES) -> None:
    """Make every POST route but chat completions answer 400 to a body with chat-only fields."""
    for route in app.routes:
        if isinstance(route, APIRoute) and "POST" in route.methods and route.path != CHAT:
            route.app = request_response(_checked(route.get_route_handler(), route.path, aliases))


def _checked(handler: Handler, path: str, aliases: ModelAliases) -> Handler:
    async def checked(request: Request) -> Response:
        if "json" in request.headers.get("content-type", "").lower():
            body = await _body(request)
            if isinstance(body, dict) and not (path == INVOCATIONS and "messages" in body):
                _check(body, path, aliases)
                _describe(body)
        return await handler(request)

    return checked


async def _body(request: Request) -> Any:
    try:
        # The request caches the parsed body, so the handler does not parse it again.
        return await request.json()
    except Exception:
        # Not JSON, or the client disconnected; the handler fails likewise and answers that.
        return None


def _check(body: dict[str, Any], path: str, aliases: ModelAliases) -> None:
    model = body.get("model")
    if isinstance(model, str) and model in aliases:
        raise ConfigError(
            f"the model name {model} chooses METok settings, which works on {CHAT} only; ask "
            f"{path} for {aliases.targets[model][0]}",
            "model",
        )
    if body.get(FIELD) is not None:
        raise ConfigError(
            f"the {FIELD} field works on {CHAT} only; requests to {path} are answered with the "
            "server's METok settings",
            FIELD,
        )
    if has_named_media(body):
        raise ConfigError(f"{UUID} works on {CHAT} only; send the media itself to {path}", UUID)
    if path == TOKENS and body.get(FEATURES) is not None:
        raise ConfigError(f"this server takes no {FEATURES} of another renderer", FEATURES)


def _describe(body: dict[str, Any]) -> None:
    """Set the requester's tenant and its number of videos, for the code that reads its media."""
    requester = current()
    salt = body.get("cache_salt")
    requester.add_salt(salt if isinstance(salt, str) else None)
    requester.videos = sum("video_url" in (node.get("type"), *node) for node in objects(body))
