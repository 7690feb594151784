"""vLLM's responses route, with a request whose list of items is refused at its first wrong one.

Each item is tried against thirty types, so that 1,000 wrong ones take seconds and gigabytes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import FailFast, create_model
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

router = APIRouter()


class _FirstErrorOnly(FailFast):
    # A part of a union has to have a hash.
    __hash__ = object.__hash__


def _first_error_only(annotation: Any) -> Any:
    """The union with its list arms failing at the first wrong item."""
    arms = [
        Annotated[arm, _FirstErrorOnly()] if get_origin(arm) is list else arm
        for arm in get_args(annotation)
    ]
    return Union[tuple(arms)]  # noqa: UP007 - the arms are known only here


QuickResponsesRequest: Any = create_model(
    "ResponsesRequest",
    __base__=ResponsesRequest,
    input=(_first_error_only(ResponsesRequest.model_fields["input"].annotation), ...),
)


@router.post(
    "/v1/responses",
    dependencies=[Depends(validate_json_request)],
    responses={
        HTTPStatus.OK.value: {"content": {"text/event-stream": {}}},
        HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse},
        HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse},
        HTTPStatus.INTERNAL_SERVER_ERROR.value: {"model": ErrorResponse},
    },
)
async def create_quick_responses(request: QuickResponsesRequest, raw_request: Request) -> Response:
    """vLLM's own route."""
    return await create_responses(request, raw_request)  # type: ignore[no-any-return]
