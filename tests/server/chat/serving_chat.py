"""METok's chat endpoint without a server, and requests to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.plan.request import RequestPlan, VideoPlan
from metok_vllm.server.chat.aliases import NO_ALIASES, ModelAliases
from metok_vllm.server.chat.request_fields import MetokChatRequest
from metok_vllm.server.chat.serving import MetokServingChat
from metok_vllm.video.limits import MediaLimits

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
TEXT = {"type": "text", "text": "What happens?"}
PLAN = RequestPlan("balanced", (1,), "user_turn", (VideoPlan("a", 2, (0.0, 1.0), 2.0, 100, 40),))
ENTRY = {"event_of_frame": [0], "seconds": None}


def serving(
    trust: bool = False,
    metok: METokConfig | None = None,
    image_runs_as_video: int = 0,
    aliases: ModelAliases = NO_ALIASES,
) -> Any:
    chat = MetokServingChat.__new__(MetokServingChat)
    chat.trust_mm_kwargs = trust
    chat.limits = MediaLimits()
    chat.image_runs_as_video = image_runs_as_video
    chat.aliases = aliases
    chat.metok = metok
    chat.model_config = SimpleNamespace(max_model_len=1024)
    chat.default_sampling_params = {}
    return chat


def request(**fields: Any) -> MetokChatRequest:
    messages = [{"role": "user", "content": [VIDEO, TEXT]}]
    return MetokChatRequest(**{"messages": messages, "model": "m", **fields})


class Core:
    """vLLM's engine client, with one canned answer for each engine."""

    def __init__(self, answers: list[list[Any]] | Exception) -> None:
        self.answers = answers
        self.calls: list[Any] = []

    async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
        self.calls.append(call)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers
