"""What stands before vLLM's routes, as plain ASGI classes: a stream passes chunk by chunk.

Outermost first:

- ErrorEnvelope: every error in one form, cut to a length; what was not handled is a 500.
- KeyCheck, where there are keys: nothing of a request without one is read or counted.
- Refusal: 429 and 503 before the client sends its body.
- BodyReader: the body, whole, within its limits.
- Admission: counts the request from here.
- Deadline: ends it in time, and when its client leaves.
- BooksOnScrape, where there are books: fresh values before `/metrics` is answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI

from metok_vllm.server.middleware.admission import Admission, Refusal
from metok_vllm.server.middleware.body import BodyReader
from metok_vllm.server.middleware.deadline import Deadline
from metok_vllm.server.middleware.envelope import ErrorEnvelope
from metok_vllm.server.middleware.evictor_state import BooksOnScrape, EngineBooks
from metok_vllm.server.middleware.key_check import KeyCheck
from metok_vllm.server.middleware.lifecycle import Lifecycle
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits


def add_middleware(
    app: FastAPI,
    lifecycle: Lifecycle,
    settings: ServerSettings,
    limits: MediaLimits,
    *,
    keys: Sequence[str] = (),
    books: EngineBooks | None = None,
) -> None:
    """Put all of it around `app`. The last one added is the outermost."""
    # vLLM's SageMaker support has built the stack already; no request has been through it yet.
    app.middleware_stack = None
    if books is not None:
        app.add_middleware(BooksOnScrape, books=books)
    app.add_middleware(Deadline, seconds=settings.request_timeout_s)
    app.add_middleware(Admission, lifecycle=lifecycle, max_inflight=settings.max_inflight)
    app.add_middleware(
        BodyReader,
        limit=settings.body_limit(limits),
        total=settings.inflight_body_limit(limits),
        seconds=settings.body_timeout_s,
        max_text=settings.max_text_bytes,
    )
    app.add_middleware(Refusal, lifecycle=lifecycle, max_inflight=settings.max_inflight)
    if keys:
        app.add_middleware(KeyCheck, keys=keys, metrics_without_key=settings.metrics_without_key)
    app.add_middleware(ErrorEnvelope)
