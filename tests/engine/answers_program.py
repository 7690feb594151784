"""Answers a fixed set of prompts in an engine with workers of its own, as JSON on standard output.

    python -m tests.engine.answers_program '{"tensor_parallel_size": 2}'

With `"schedule_ahead": true` it schedules a step while the one before is in flight, which vLLM does
on GPUs and switches off on the CPU: the stream that results are copied on is replaced by nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch

from tests.engine.conftest import ENGINE, answer, ask, logprobs, token_ids, video


def prompts() -> list[dict[str, Any]]:
    """METok with several settings, METok off, and text, for one batch."""
    return [
        ask("How many?", videos=[video(2, (6, 8, 9))]),
        ask("Hello there."),
        ask("How many?", videos=[video(2, (6, 8, 9))], options={"enabled": False}),
        ask("Which?", videos=[video(3, (6, 8)), video(4, (5, 5, 5))], options={"decode_keep": 0.3}),
        ask("Why?", videos=[video(5, (12, 7))], options={"stages": [2, 3], "keep_ratio": 0.5}),
        ask("Where?", videos=[video(5, (12, 7))], options={"preset": "max"}),
    ]


class _Immediate:
    """A CUDA event or stream on a machine where everything is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def record(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...


def schedule_ahead() -> None:
    """Let the CPU platform schedule asynchronously."""
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def keep(cls: Any, vllm_config: Any) -> None:
        stock(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(keep)
    torch.cuda.Event = torch.cuda.Stream = _Immediate  # type: ignore[misc, assignment]
    torch.cuda.current_stream = _Immediate  # type: ignore[assignment]
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore[assignment, return-value]


def main() -> None:
    """Start, answer, print."""
    from vllm import LLM

    from tests.untrained import ALIGNMENT_DIR, MODEL_DIR

    settings = {**ENGINE, "block_size": 32, **json.loads(sys.argv[1])}
    if settings.pop("schedule_ahead", False):
        schedule_ahead()
    metok = {"alignment_model": str(ALIGNMENT_DIR)}
    engine = LLM(**{**settings, "model": str(MODEL_DIR)}, additional_config={"metok": metok})
    outputs = answer(engine, prompts(), tokens=20)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        # Workers hear of the last finished requests with the next step.
        engine.llm_engine.step()
    config = engine.llm_engine.vllm_config
    books = engine.collective_rpc("metok_books")
    result = {
        "tokens": [token_ids(output) for output in outputs],
        "logprobs": [logprobs(output) for output in outputs],
        "books": books,
        "schedules_ahead": config.scheduler_config.async_scheduling,
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
