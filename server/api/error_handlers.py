"""What a failed request answers and logs: METok's errors, invalid bodies, and a dead engine.

A client's mistake is a 4xx and one short line in the log, without a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import engine_error_handler
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.errors import MetokError
from metok_vllm.server.middleware.envelope import (
    ENGINE_DEAD,
    MAX_PARAM,
    MAX_QUOTED,
    cut,
    error_response,
    short,
)

logger = logging.getLogger("vllm.metok")

MAX_REPORTED_ERRORS = 5
# Validation errors that are read, because all of them may give the same line.
MAX_READ_ERRORS = 100
# What code that reads a request raises for a value of a wrong type or form. vLLM's validators run
# before the type checks, and its renderers assume non-empty lists and complete objects.
WRONG_TYPES = (
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    RecursionError,
)
WRONG_TYPE = "the request cannot be read: a field holds a value of a wrong type or form"
# Loggers with which vLLM logs clients' errors as its own before it answers them.
LOGGERS = (
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.cohere.serving",
    "vllm.entrypoints.generate.generative_scoring.serving",
    "vllm.entrypoints.openai.chat_completion.batch_serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.scale_out.render.serving",
    "vllm.entrypoints.scale_out.token_in_token_out.serving",
)


def add_handlers(app: FastAPI) -> None:
    """Replace vLLM's error handlers, and shorten its log of clients' errors. Idempotent."""
    app.add_exception_handler(MetokError, metok_error_handler)
    app.add_exception_handler(RequestValidationError, validation_error_handler)
    app.add_exception_handler(EngineDeadError, engine_dead_handler)
    for kind in WRONG_TYPES:
        app.add_exception_handler(kind, wrong_type_handler)
    for name in LOGGERS:
        vllm_logger = logging.getLogger(name)
        if not any(isinstance(present, ClientErrorFilter) for present in vllm_logger.filters):
            vllm_logger.addFilter(ClientErrorFilter())


async def metok_error_handler(_request: Request, error: Exception) -> Response:
    """A MetokError is answered with its own status."""
    status = error.status if isinstance(error, MetokError) else 500
    return error_response(status, str(error), getattr(error, "field", None))


async def engine_dead_handler(request: Request, error: Exception) -> Response:
    """vLLM's handler, which ends the server, with METok's message and a 503."""
    await engine_error_handler(request, error)
    return error_response(503, ENGINE_DEAD)


async def wrong_type_handler(_request: Request, error: Exception) -> Response:
    """400 if the error was raised while a request was read. Raises any other error again."""
    calls = list(_calls(error))
    # SageMaker's wrapper of /invocations calls the route, so only its own errors are about a body.
    is_wrapper = calls[-1][0].startswith("model_hosting_container_standards.")
    if not is_wrapper and not any(_reads_requests(module) for module, _ in calls):
        raise error
    # The place shows whether the mistake is the server's after all.
    logger.info("A request was refused: %s in %s:%d", type(error).__name__, *calls[-1])
    return error_response(400, WRONG_TYPE)


def _reads_requests(module: str) -> bool:
    if module.startswith("vllm.renderers."):
        return True
    return module.startswith("vllm.entrypoints.") and module.endswith(".protocol")


def _calls(error: BaseException) -> Iterator[tuple[str, int]]:
    """Module and line of every call in the error's traceback, innermost last."""
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_lineno
        trace = trace.tb_next


async def validation_error_handler(_request: Request, error: Exception) -> Response:
    """400 for malformed JSON and wrong types. The message does not repeat the payload."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    message, param = describe(details)
    return error_response(400, message, param)


def describe(details: Sequence[Any]) -> tuple[str, str | None]:
    """The first few distinct errors, the number of the others, and the first error's field."""
    lines: dict[str, None] = {}
    param: str | None = None
    num_read = 0
    for detail in details[:MAX_READ_ERRORS]:
        if len(lines) == MAX_REPORTED_ERRORS:
            break
        line, field = _line(detail)
        param = param or field
        lines[cut(line, MAX_QUOTED)] = None
        num_read += 1
    more = [f"and {len(details) - num_read} more"] if num_read < len(details) else []
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
    # A client may send a field name of any length.
    is_named = where not in ("", "body")
    return (f"{cut(where, MAX_PARAM)}: {text}" if is_named else text), field


class ClientErrorFilter(logging.Filter):
    """Turns a log record of a client's error into one line at INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False if the logger does not show INFO."""
        error = record.exc_info[1] if record.exc_info else None
        answers = record.args if isinstance(record.args, tuple) else ()
        if error is not None and is_client_error(error):
            text = f"{type(error).__name__}: {error}"
        elif answers and isinstance(answers[0], ErrorResponse):
            text = answers[0].error.message
        else:
            return True
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "A request was refused: %s", (short(text),)
        record.exc_info = record.exc_text = None
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)


def is_client_error(error: BaseException) -> bool:
    """Whether an error is answered with a 4xx, or its client has disconnected."""
    # vLLM answers a plain ValueError with 400, and MetokErrors are ValueErrors.
    return isinstance(error, VLLMClientError | ClientDisconnect | ValueError)
