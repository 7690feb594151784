"""What FastAPI's error handlers answer: our errors, a dead engine, a body that is not valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import engine_error_handler
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.errors import MetokError
from metok_vllm.server.middleware.envelope import (
    ENGINE_DEAD,
    MAX_PARAM,
    MAX_QUOTED,
    cut,
    error_response,
)

MAX_REPORTED_ERRORS = 5
# Of so many at most: all the others might say the same.
MAX_READ_ERRORS = 100


def add_handlers(app: FastAPI) -> None:
    """Put them in the place of vLLM's."""
    app.add_exception_handler(MetokError, metok_error_handler)
    app.add_exception_handler(RequestValidationError, validation_error_handler)
    app.add_exception_handler(EngineDeadError, engine_dead_handler)


async def metok_error_handler(_request: Request, error: Exception) -> Response:
    """A MetokError anywhere below a route becomes the status it stands for."""
    status = error.status if isinstance(error, MetokError) else 500
    return error_response(status, str(error), getattr(error, "field", None))


async def engine_dead_handler(request: Request, error: Exception) -> Response:
    """vLLM's handler, which ends the server, with words for the client and a status to retry on."""
    await engine_error_handler(request, error)
    return error_response(503, ENGINE_DEAD)


async def validation_error_handler(_request: Request, error: Exception) -> Response:
    """Malformed JSON and wrong types: what is wrong and where, without repeating the payload."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    message, param = describe(details)
    return error_response(400, message, param)


def describe(details: Sequence[Any]) -> tuple[str, str | None]:
    """The first few different errors in words, how many more there are, and the field to blame."""
    lines: dict[str, None] = {}
    param: str | None = None
    seen = 0
    for detail in details[:MAX_READ_ERRORS]:
        if len(lines) == MAX_REPORTED_ERRORS:
            break
        line, field = _line(detail)
        param = param or field
        lines[cut(line, MAX_QUOTED)] = None
        seen += 1
    more = [f"and {len(details) - seen} more"] if seen < len(details) else []
    return "; ".join([*lines, *more]), param


def _line(detail: Any) -> tuple[str, str | None]:
    if not isinstance(detail, dict):
        return str(detail), None
    where = clean_loc_for_param(tuple(detail.get("loc", ()))).removeprefix("body.")
    context = detail.get("ctx", {}).get("error")
    if detail.get("type") == "json_invalid":
        return f"the body is not valid JSON ({context})", getattr(context, "parameter", None)
    text = str(detail.get("msg", "is not valid")).removeprefix("Value error, ")
    field = getattr(context, "parameter", None) or where or None
    # A field's name may be as long as the client likes.
    named = where not in ("", "body")
    return (f"{cut(where, MAX_PARAM)}: {text}" if named else text), field
