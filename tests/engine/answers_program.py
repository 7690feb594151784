"""Answer a fixed set of prompts in a new process; print the result as JSON.

    python -m tests.engine.answers_program '{"tensor_parallel_size": 2}' [folder of a Qwen model]

With `"schedule_ahead": true` a step is scheduled while the one before is in flight. vLLM does this
on GPUs only, so the CUDA stream for copying results is replaced by a stand-in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch

from tests.engine.engines import UNTRAINED
from tests.engine.prompts import answer, chat_prompt, logprobs, token_ids, video
from tests.engine.staged_expected import END_ID
from tests.engine.staged_prompts import LLAVA, OFF, QWEN, Clip, Media, Parts, Picture, make_prompt
from tests.reference.qwen_vl_config import ID_OF
from tests.untrained import ALIGNMENT_DIR


def prompts() -> list[dict[str, Any]]:
    """One batch: METok with several settings, METok off, and text."""
    return [
        chat_prompt("How many?", videos=[video(2, (6, 8, 9))]),
        chat_prompt("Hello there."),
        chat_prompt("How many?", videos=[video(2, (6, 8, 9))], options={"enabled": False}),
        chat_prompt(
            "Which?", videos=[video(3, (6, 8)), video(4, (5, 5, 5))], options={"decode_keep": 0.3}
        ),
        chat_prompt(
            "Why?", videos=[video(5, (12, 7))], options={"stages": [2, 3], "keep_ratio": 0.5}
        ),
        chat_prompt("Where?", videos=[video(5, (12, 7))], options={"preset": "max"}),
        # Longer than a step of CHUNKED.
        chat_prompt("Who? " * 40, videos=[video(6, (9, 9, 9))]),
    ]


# A video and an image, two videos of two sizes with times, and what stands beside METok.
_LENGTHS = (3, 6, 2)
_QWEN: list[tuple[Parts, dict[str, Any]]] = [
    ((9, Clip(5, _LENGTHS), 4, Picture(3, (1,)), 20), {"decode_keep": 0.25}),
    ((9, Clip(5, _LENGTHS), 20), OFF),
    ((40,), {}),
    ((6, Clip(6, (3, 4), fps=3.0), 4, Clip(7, (4, 2), (64, 224)), 90), {"reduce": "select"}),
]


def qwen_prompts() -> list[dict[str, Any]]:
    """The same for a Qwen model, shorter."""
    return [make_prompt(parts, options, media=QWEN) for parts, options in _QWEN]


# Turns of a conversation. How many blocks are evicted depends on their size, which is the same for
# engines of one Qwen family only.
_TURN: Parts = (9, Clip(5, (3, 6, 2)), 20)


def answers(engine: Any, asked: list[dict[str, Any]], turns: list[dict[str, Any]]) -> list[Any]:
    """Answers to all at once, then to each turn, then to all turns at once."""
    outputs = answer(engine, asked, tokens=20)
    for turn in turns:
        outputs += answer(engine, [turn], tokens=20)
    return outputs + answer(engine, turns, tokens=20)


def turns() -> list[dict[str, Any]]:
    """Two turns."""
    return _turns(END_ID, LLAVA, {"stages": [1, 2]})


def qwen_turns() -> list[dict[str, Any]]:
    """The same for a Qwen model, with eviction."""
    return _turns(ID_OF["<|im_end|>"], QWEN, {"decode_keep": 0.25})


def _turns(end: int, media: Media, options: dict[str, Any]) -> list[dict[str, Any]]:
    first: Parts = (*_TURN, (end,), 4)
    # These prompts have no headers by which the first question would be found.
    options = {"focus": "conversation", "focus_text": "a ball", **options}
    both = (first, (*first, 9, (end,), 150))
    return [make_prompt(parts, options, media=media) for parts in both]


class _Immediate:
    """Stands for a CUDA event or stream; on the CPU all work is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def record(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...


def schedule_ahead() -> None:
    """Switch on asynchronous scheduling on the CPU platform."""
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

    settings = {
        **UNTRAINED,
        "block_size": 32,
        "num_gpu_blocks_override": 4096,
        **json.loads(sys.argv[1]),
    }
    if settings.pop("schedule_ahead", False):
        schedule_ahead()
    metok: dict[str, Any] = {"alignment_model": str(ALIGNMENT_DIR)}
    asked = prompts(), turns()
    if len(sys.argv) > 2:
        settings["model"], metok, asked = sys.argv[2], {}, (qwen_prompts(), qwen_turns())
    engine = LLM(**settings, additional_config={"metok": metok})
    outputs = answers(engine, *asked)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        # Workers learn of the last finished requests in the next step.
        engine.llm_engine.step()
    config = engine.llm_engine.vllm_config
    books = engine.collective_rpc("metok_evictor_state")
    result = {
        "tokens": [token_ids(output) for output in outputs],
        "logprobs": [logprobs(output) for output in outputs],
        "books": books,
        "schedules_ahead": config.scheduler_config.async_scheduling,
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
