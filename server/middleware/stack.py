"""The middleware around vLLM's routes, as plain ASGI classes that pass streams chunk by chunk.

Outermost first:

- ErrorEnvelope: every error as an OpenAI envelope; an unhandled exception is a 500.
- KeyCheck, if there are keys: a request without one is neither read nor counted.
- Refusal: 429 and 503 before the client sends its body.
- BodyReader: reads the whole body within its limits.
- Admission: counts the request as in flight.
- Deadline: ends the request at its deadline, and when its client disconnects.
- EvictorMetrics, with stages 2 or 3: updates the evictor's metrics before `/metrics` answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI

from metok_vllm.server.middleware.access import KeyCheck
from metok_vllm.server.middleware.admission import Admission, Deadline, Refusal
from metok_vllm.server.middleware.body import BodyReader
from metok_vllm.server.middleware.envelope import ErrorEnvelope
from metok_vllm.server.middleware.evictor_state import EvictorMetrics, EvictorStates
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
    evictors: EvictorStates | None = None,
) -> None:
    """Add the middleware to `app`, innermost first."""
    # vLLM's SageMaker support has already built the stack; it is rebuilt at the first request.
    app.middleware_stack = None
    if evictors is not None:
        app.add_middleware(EvictorMetrics, evictors=evictors)
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
