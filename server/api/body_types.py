"""A request whose values nobody thought of is a 400, on every route.

vLLM's request classes have validators that run before the types are checked, and its renderers
take lists to have items and objects to have fields. What they raise then says nothing to FastAPI,
so it would be a 500 with a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.responses import Response

from metok_vllm.server.middleware.envelope import error_response

logger = logging.getLogger("vllm.metok")

# What code that only reads a request raises for a value of a wrong type or form.
WRONG_TYPES = (
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    RecursionError,
)
WRONG_TYPE = "the request cannot be read: a field holds a value of a wrong type or form"


def refuse_wrong_types(app: FastAPI) -> None:
    """Answer 400 where reading a request fails; what fails elsewhere stays a 500."""
    for kind in WRONG_TYPES:
        app.add_exception_handler(kind, wrong_type_handler)


async def wrong_type_handler(_request: Request, error: Exception) -> Response:
    """Raises the error again where it is the server's."""
    places = list(_places(error))
    # What looks into the body of /invocations stands around whatever answers it.
    is_body = places[-1][0].startswith("model_hosting_container_standards.")
    if not is_body and not any(_reads_requests(module) for module, _ in places):
        raise error
    # Where, for whoever thinks that it is a mistake of ours.
    logger.info("A request was refused: %s in %s:%d", type(error).__name__, *places[-1])
    return error_response(400, WRONG_TYPE)


def _reads_requests(module: str) -> bool:
    if module.startswith("vllm.renderers."):
        return True
    return module.startswith("vllm.entrypoints.") and module.endswith(".protocol")


def _places(error: BaseException) -> Iterator[tuple[str, int]]:
    """Module and line of every call that led to it, the innermost last."""
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_lineno
        trace = trace.tb_next
