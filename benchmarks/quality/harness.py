"""The measurement: every question under every setting, with one server for each server setting.

Dense runs first. Its most likely first tokens are those at which the distributions of all other
settings are compared. Questions are sent in a closed loop, one setting after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.quality.divergence import first_token_kl
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.questions.prompts import VideoQuestion
from metok_vllm.benchmarks.questions.request import OUTPUT_LEN, Reply, send_question
from metok_vllm.benchmarks.questions.settings import Setting, checked, server_key
from metok_vllm.errors import ConfigError

TIMEOUT_S = 600.0
CONCURRENCY = 4
# Statuses that do not depend on the video: a server that answers one refuses every question.
REFUSALS = (400, 401, 403, 404)


@dataclass(frozen=True)
class Server:
    """A running server; `block_size` is None if it does not report it."""

    endpoint: Endpoint
    block_size: int | None


Serve = Callable[[Mapping[str, Any]], AbstractContextManager[Server]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """Questions at one number of frames and the settings to measure, dense first.

    `chance` is the accuracy of guessing by kind, in 0 to 1.
    """

    frames: int
    questions: tuple[VideoQuestion, ...]
    settings: tuple[Setting, ...]
    chance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """One answer and its figures; unknown figures, and all after an `error`, are None.

    `kind` tells multiple choice apart. `answer` is the right one, if it is known. `right` compares
    `text` with it, `agrees` with dense's text; `kl` is in nats. `video` is the path in its folder.
    `kv_tokens` are the tokens held for decoding, summed over layers, and `kv_bytes` the blocks that
    hold them. Shares are relative to the dense prompt. FLOPs are those of the decoder's prefill.
    """

    setting: str
    frames: int
    number: int
    video: str
    kind: str
    text: str
    error: str | None
    question: str = ""
    answer: str | None = None
    right: bool | None = None
    agrees: bool | None = None
    kl: float | None = None
    prompt_tokens: int | None = None
    kv_tokens: int | None = None
    kv_bytes: int | None = None
    kv_share: float | None = None
    flops: int | None = None
    flops_share: float | None = None
    unpruned: str | None = None
    pruning_layers: tuple[int, ...] | None = None


Batch = tuple[Cell, Setting, list[Answered]]


def measure(
    cells: Sequence[Cell],
    serve: Serve,
    geometry: Geometry | None,
    concurrency: int = CONCURRENCY,
    output_len: int = OUTPUT_LEN,
    progress: Progress = lambda _: None,
) -> Iterator[Batch]:
    """Yield the answers to each cell's questions under each setting when they are complete.

    Without `geometry`, bytes are unknown. Raises ConfigError for settings that cannot be compared,
    and where the server refuses the first question whatever its video.
    """
    if concurrency < 1:
        raise ConfigError(f"max_concurrency must be at least 1, got {concurrency}")
    if output_len < 1:
        raise ConfigError(f"output_len must be at least 1, got {output_len}", "output_len")
    by_server: dict[str, list[tuple[Cell, Setting]]] = {}
    for cell in cells:
        for setting in checked(cell.settings):
            by_server.setdefault(server_key(setting), []).append((cell, setting))
    dense: dict[int, list[Reply]] = {}
    # Dense is the first setting of every cell and runs on the first server.
    for pairs in by_server.values():
        progress("waiting for the server")
        with serve(pairs[0][1].server) as server:
            for cell, setting in pairs:
                reference = dense.get(id(cell))
                replies = asyncio.run(
                    send_questions(
                        server.endpoint,
                        cell,
                        setting,
                        reference,
                        concurrency,
                        output_len,
                        progress,
                    )
                )
                reference = dense.setdefault(id(cell), replies)
                triples = zip(cell.questions, replies, reference, strict=True)
                answers = [
                    answered(number, setting, *triple, server=server, geometry=geometry)
                    for number, triple in enumerate(triples)
                ]
                yield cell, setting, answers


async def send_questions(
    endpoint: Endpoint,
    cell: Cell,
    setting: Setting,
    dense: Sequence[Reply] | None,
    concurrency: int,
    output_len: int,
    progress: Progress,
) -> list[Reply]:
    """A reply to every question of the cell, with `concurrency` requests in flight.

    Dense's first question is sent alone. Raises ConfigError if the server refuses it.
    """
    slots = asyncio.Semaphore(concurrency)
    done = 0
    async with endpoint.client(TIMEOUT_S) as client:

        async def one(number: int) -> Reply:
            nonlocal done
            token_ids = tuple(dense[number].first) if dense is not None else ()
            async with slots:
                reply = await send_question(
                    client,
                    endpoint,
                    cell.questions[number],
                    setting,
                    token_ids,
                    output_len,
                    earlier_of(cell.questions, number, setting.earlier),
                )
            done += 1
            total = len(cell.questions)
            progress(f"{cell.frames} frames, {setting.name}: {done} of {total} questions")
            return reply

        first = []
        if dense is None:
            first = [await one(0)]
            if first[0].status in REFUSALS:
                raise ConfigError(f"the server refuses the questions: {first[0].error}")
        rest = range(len(first), len(cell.questions))
        return [*first, *await asyncio.gather(*map(one, rest))]


def earlier_of(questions: Sequence[VideoQuestion], number: int, count: int) -> list[VideoQuestion]:
    """The `count` questions that follow a question in the list of those about its video."""
    asked = questions[number]
    same = [question for question in questions if question.video == asked.video]
    place = next(at for at, question in enumerate(same) if question is asked)
    return [same[(place + 1 + step) % len(same)] for step in range(count)]


def answered(
    number: int,
    setting: Setting,
    question: VideoQuestion,
    reply: Reply,
    dense: Reply,
    *,
    server: Server,
    geometry: Geometry | None,
) -> Answered:
    """The figures of one reply, compared with dense's reply to the same question."""
    place = (setting.name, question.frames, number, question.name, question.label)
    asked = question.asked, question.answer
    if reply.error is not None:
        return Answered(*place, "", reply.error, *asked)
    report, size = reply.metok, server.block_size
    flops, boundaries = report["decoder_prefill_flops"], report.get("pruning_layers")
    tokens = kv_bytes = None
    if geometry is not None:
        tokens = geometry.kv_token_layers(report, reply.prompt_tokens)
        kv_bytes = None if size is None else geometry.kv_bytes(report, size)
    # A report's own dense counts cover only its frames; blocks of two servers may differ in size.
    same = dense.error is None and not setting.server
    all_blocks = dense.metok["kv_blocks"]["decode"] if same else report["kv_blocks"]["dense"]
    all_flops = (dense.metok if same else report)["decoder_prefill_flops"]["dense"]
    return Answered(
        *place,
        reply.text,
        None,
        *asked,
        right=question.is_right(reply.text),
        agrees=reply.text == dense.text if dense.error is None else None,
        kl=first_token_kl(dense.first, reply.first) if dense.error is None else None,
        prompt_tokens=reply.prompt_tokens,
        kv_tokens=tokens,
        kv_bytes=kv_bytes,
        kv_share=_of(report["kv_blocks"]["decode"], all_blocks),
        flops=int(flops["metok"]),
        flops_share=_of(flops["metok"], all_flops),
        unpruned=report.get("unpruned"),
        pruning_layers=None if boundaries is None else tuple(boundaries),
    )


def _of(part: float, whole: float) -> float | None:
    return part / whole if whole else None
