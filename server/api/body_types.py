"""A body whose values are of types that a validator did not think of is a 400.

vLLM's request classes have validators that run before the types are checked. What they raise for a
string in an object's place is no validation error to pydantic, so it would be a 500.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

logger = logging.getLogger("vllm.metok")

WRONG_TYPE = "a field holds a value of a wrong type"
Validate = Callable[..., tuple[Any, Any]]


def guard_bodies(app: FastAPI) -> None:
    """Let every route of `app` refuse a body that its validators fail over."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for field in route.dependant.body_params:
                # The fields are shared by whatever handlers are made from the route.
                field.validate = _guarded(field.validate)  # type: ignore[method-assign]


def _guarded(validate: Validate) -> Validate:
    def guarded(value: Any, *args: Any, loc: tuple[Any, ...], **kwargs: Any) -> tuple[Any, Any]:
        try:
            return validate(value, *args, loc=loc, **kwargs)
        except Exception as error:
            logger.info("A body was refused: its validation ended in %s", type(error).__name__)
            return None, [{"type": "wrong_type", "loc": loc, "msg": WRONG_TYPE, "input": None}]

    return guarded


def is_validators(error: BaseException) -> bool:
    """Whether a validator of a request class raised it, for routes that call them themselves."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.startswith("vllm.entrypoints.") and module.endswith(".protocol")
