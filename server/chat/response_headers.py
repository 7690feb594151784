"""METok's response headers, which survive proxies and client libraries that drop unknown fields.

They are known once a request is rendered, before its first token.
"""

from __future__ import annotations

from contextvars import ContextVar

from metok_vllm.plan.request import RequestPlan

PRESET, VISUAL_TOKENS = "x-metok-preset", "x-metok-visual-tokens"

# vLLM renders in a task of its own, whose context is a copy, so both tasks share one dictionary.
_HEADERS: ContextVar[dict[str, str] | None] = ContextVar("metok_response_headers", default=None)


def collect() -> dict[str, str]:
    """A dictionary that `announce` fills for the request of this context."""
    headers: dict[str, str] = {}
    _HEADERS.set(headers)
    return headers


def announce(plan: RequestPlan) -> None:
    """Set the headers of a request with videos: its preset, and visual tokens kept of dense."""
    headers = _HEADERS.get()
    if headers is not None:
        headers[PRESET] = plan.name
        headers[VISUAL_TOKENS] = f"{plan.encoded_tokens}/{plan.dense_tokens}"
