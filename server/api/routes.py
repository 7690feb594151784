"""METok's routes on vLLM's app: chat completions, responses, readiness and version."""

from __future__ import annotations

import importlib.metadata
from http import HTTPStatus
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import FailFast, create_model
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.version import __version__ as vllm_version

from metok_vllm.config import METokConfig
from metok_vllm.server.chat import response_headers
from metok_vllm.server.chat.request_fields import MetokChatRequest
from metok_vllm.server.middleware import evictor_state
from metok_vllm.server.middleware.envelope import ENGINE_DEAD, error_response
from metok_vllm.server.middleware.lifecycle import Phase

router = APIRouter()
router.include_router(evictor_state.router)

# As vLLM describes both routes in its OpenAPI document.
GENERATION_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"content": {"text/event-stream": {}}},
    HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse},
    HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse},
    HTTPStatus.INTERNAL_SERVER_ERROR.value: {"model": ErrorResponse},
}


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses={
        **GENERATION_RESPONSES,
        HTTPStatus.NOT_IMPLEMENTED.value: {"model": ErrorResponse},
    },
)
async def create_metok_chat_completion(request: MetokChatRequest, raw_request: Request) -> Response:
    """vLLM's own route, with METok's request schema and response headers."""
    headers = response_headers.collect()
    response: Response | None = await create_chat_completion(request, raw_request)
    if response is None:  # the client disconnected
        return Response()
    if response.status_code < HTTPStatus.BAD_REQUEST:
        response.headers.update(headers)
    return response


class _FirstErrorOnly(FailFast):
    # pydantic hashes the arms of a union.
    __hash__ = object.__hash__


def _first_error_only(annotation: Any) -> Any:
    """The union with list arms that fail at the first invalid item."""
    arms = [
        Annotated[arm, _FirstErrorOnly()] if get_origin(arm) is list else arm
        for arm in get_args(annotation)
    ]
    return Union[tuple(arms)]  # noqa: UP007 - the arms are known only here


# pydantic tries each item against thirty types, so 1,000 invalid ones take seconds and gigabytes.
QuickResponsesRequest: Any = create_model(
    "ResponsesRequest",
    __base__=ResponsesRequest,
    input=(_first_error_only(ResponsesRequest.model_fields["input"].annotation), ...),
)


@router.post(
    "/v1/responses",
    dependencies=[Depends(validate_json_request)],
    responses=GENERATION_RESPONSES,
)
async def create_quick_responses(request: QuickResponsesRequest, raw_request: Request) -> Response:
    """vLLM's own route, with validation that stops at the first invalid item."""
    response: Response = await create_responses(request, raw_request)
    return response


@router.get("/v1/models")
async def models(raw_request: Request) -> Response:
    """vLLM's list of models, then their names with METok's presets."""
    state = raw_request.app.state
    served = await state.openai_serving_models.show_available_models()
    served.data += state.metok_aliases.cards(served.data)
    return JSONResponse(served.model_dump())


@router.get("/health/ready")
async def ready(raw_request: Request) -> Response:
    """200 while requests are taken; 503 while loading or draining, and when the engine is dead."""
    state = raw_request.app.state
    phase: Phase = state.metok_lifecycle.phase
    if phase is not Phase.SERVING:
        return error_response(503, f"The server is {phase.value}.")
    try:
        await state.engine_client.check_health()
    except EngineDeadError:
        return error_response(503, ENGINE_DEAD)
    return JSONResponse({"status": "ready"})


@router.get("/version")
async def version(raw_request: Request) -> Response:
    """vLLM's version, METok's version, and METok's settings on this server."""
    config: METokConfig | None = raw_request.app.state.metok_config
    settings = config.to_dict() if config is not None else None
    if settings is not None and settings["alignment_model"] is not None:
        settings["alignment_model"] = "set"  # it may be a path
    metok_version = importlib.metadata.version("metok-vllm")
    return JSONResponse({"version": vllm_version, "metok": metok_version, "metok_config": settings})
