"""A rendered request, from its prompt to the `metok` object of its answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from metok_vllm import metrics
from metok_vllm.config import METokConfig
from metok_vllm.plan.request import RequestPlan
from metok_vllm.server.chat.report import (
    EngineFacts,
    fallback_reason,
    metok_report,
    not_applied,
    unpruned_reason,
    uses_events,
    worker_entry,
)
from metok_vllm.server.engine_client import call_workers

logger = logging.getLogger("vllm.metok")


@dataclass
class RenderedRequest:
    """A request with videos.

    `excluded` is why stages 2 and 3 leave the prompt whole; None if they do not. `of_images` says
    of each video whether it was sent as a run of images. `reused_tokens` of the prompt came from a
    prefix cache; known with the first output.
    """

    plan: RequestPlan
    prompt_tokens: int
    excluded: str | None = None
    of_images: tuple[bool, ...] = ()
    reused_tokens: int = 0

    async def noting(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The engine's outputs, as they come."""
        async with aclosing(outputs):
            async for output in outputs:
                self.reused_tokens = output.num_cached_tokens or self.reused_tokens
                yield output

    async def events(self, engine_client: Any) -> list[Any]:
        """The events of the videos from every worker; empty where they decide nothing."""
        if not uses_events(self.plan):
            return []
        keys = [video.key for video in self.plan.videos]
        try:
            engines = await call_workers(engine_client, "metok_events", keys)
        except Exception:
            # The answer is complete, so it is sent with a report without events.
            logger.warning("The events of a request could not be fetched.", exc_info=True)
            return []
        workers = [worker for engine in engines for worker in engine]
        for key in keys:
            entry = worker_entry(workers, key)
            if entry is not None:
                metrics.observe_video(entry, self.plan.stages)
        return workers

    def report(
        self, engine_client: Any, metok: METokConfig | None, events: list[Any]
    ) -> dict[str, Any]:
        """The `metok` object; counts the request in the metrics."""
        plan, tokens = self.plan, self.prompt_tokens
        engine = EngineFacts.of(engine_client.vllm_config, metok)
        prompt_plan = None if self.excluded else plan.prompt_plan(tokens, engine.block_size)
        fallback = fallback_reason(plan, metok)
        unpruned = unpruned_reason(plan, self.excluded)
        metrics.count_request(plan, prompt_plan, self.reused_tokens)
        for reason in (fallback, unpruned):
            if reason is not None:
                metrics.count_fallback(reason)
        return metok_report(
            plan,
            prompt_plan,
            events,
            engine=engine,
            prompt_tokens=tokens,
            fallback=fallback,
            unpruned=unpruned,
            of_images=self.of_images,
            reused_tokens=self.reused_tokens,
        )


@dataclass(frozen=True)
class NotApplied:
    """A request whose METok settings have nothing to work on, and why."""

    reason: str

    def noting(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The same outputs."""
        return outputs

    async def events(self, _engine_client: Any) -> list[Any]:
        """None."""
        return []

    def report(
        self, _engine_client: Any, _metok: METokConfig | None, _events: list[Any]
    ) -> dict[str, Any]:
        """The `metok` object."""
        return not_applied(self.reason)
