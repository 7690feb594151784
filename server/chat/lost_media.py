"""A request whose media the engine no longer has is rendered and sent once more.

The API server's cache may believe that the engine holds an item which its own cache dropped. vLLM
then ends the request with an error that is worth a second attempt, before any token.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from vllm.outputs import RequestOutput

logger = logging.getLogger("vllm.metok")

Render = Callable[[], Awaitable[Any]]
# How to render the request of this context again; set when it was rendered.
RENDER_AGAIN: ContextVar[Render | None] = ContextVar("metok_render_again", default=None)


class PersistentClient:
    """vLLM's engine client, whose `generate` renders a request again that the engine gave back."""

    def __init__(self, engine_client: Any) -> None:
        self._client = engine_client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's."""
        # Read here: the generator may run in the context of another task.
        again = RENDER_AGAIN.get()
        if again is None:
            return self._client.generate(  # type: ignore[no-any-return]
                prompt, sampling_params, request_id, **more
            )
        return self._generate(again, prompt, sampling_params, request_id, more)

    async def _generate(
        self,
        again: Render,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        more: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = self._client.generate(prompt, sampling_params, request_id, **more)
        async with contextlib.aclosing(outputs):
            first = True
            async for output in outputs:
                if first and gave_up(output):
                    break
                first = False
                yield output
            else:
                return
        logger.info("The engine lacks media of request %s, which is sent again.", request_id)
        prompt = await again()
        outputs = self._client.generate(prompt, sampling_params, f"{request_id}-again", **more)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                yield output


def gave_up(output: RequestOutput) -> bool:
    """Whether the engine ended a request with an error before its first token."""
    choices = output.outputs
    return output.finished and all(c.finish_reason == "error" and not c.token_ids for c in choices)
