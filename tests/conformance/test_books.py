"""`GET /metok/books` and the evictor's metrics of a real server, during requests and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.conformance.requests import MODEL, messages, metric, video_part
from tests.environment import STARTED_WITH
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

BLOCK_SIZE = 32  # of the demo on a CPU
ENDLESS = 15_000  # tokens
QUESTION = messages("What is in the black scene?", video_part())


def states_of(server: ChildServer) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server.url}/metok/books", timeout=30)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["engines"])


def all_free(server: ChildServer) -> bool:
    return all(
        b["free_blocks"] == b["total_blocks"] and not b["requests"] for b in states_of(server)
    )


def ask(client: OpenAI, tokens: int) -> Any:
    """A streamed answer of exactly `tokens` tokens; the demo's presets evict less."""
    return client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "metok": {"decode_keep": 0.25}},
    )


def test_held_blocks_are_those_of_the_response(server: ChildServer, client: OpenAI) -> None:
    freed = metric(server, "metok_kv_blocks_freed_total")
    # So long that it cannot end while its state is read, however slow the machine.
    with ask(client, ENDLESS) as stream:
        chunks = iter(stream)
        for _ in range(4):
            next(chunks)
        (state,) = states_of(server)
        assert metric(server, "metok_kv_blocks_held") > 0
    ((name, request),) = state["requests"].items()
    assert request["metok"] is True
    assert name.startswith("chatcmpl-")
    held = sum(request["blocks"])
    assert state["total_blocks"] - state["free_blocks"] == held == state["held_blocks"]
    wait_until(lambda: all_free(server), 30)
    assert metric(server, "metok_kv_blocks_held") == 0
    # The same request, read to its end, says what it held after its prefill.
    last = list(ask(client, 4))[-1]
    assert last.usage is not None
    report = last.metok
    prefill, decode = report["kv_blocks"]["prefill"], report["kv_blocks"]["decode"]
    # The engine decodes meanwhile: each group holds what those tokens fill, and at most one block
    # more for the next.
    groups = len(state["stage_of_group"])
    decoded = request["tokens"] - last.usage.prompt_tokens
    assert decoded >= 0
    assert decode <= held <= decode + groups * (1 + decoded // BLOCK_SIZE)
    wait_until(lambda: all_free(server), 30)
    gone = metric(server, "metok_kv_blocks_freed_total") - freed
    assert 2 * (prefill - decode) <= gone <= 2 * (prefill - decode + groups)


def test_a_request_without_metok_frees_nothing(server: ChildServer, client: OpenAI) -> None:
    wait_until(lambda: all_free(server), 30)
    freed = metric(server, "metok_kv_blocks_freed_total")
    off = {"metok": {"enabled": False}}
    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4, extra_body=off)
    assert metric(server, "metok_kv_blocks_freed_total") == freed


@pytest.fixture(scope="module")
def two_engines() -> Iterator[ChildServer]:
    """Data parallelism by vLLM's own flags."""
    flags = ["--demo", "--data-parallel-size", "2", "--api-server-count", "1"]
    # Otherwise vLLM binds each engine to a memory node of its own.
    command = ["env", "VLLM_CPU_OMP_THREADS_BIND=nobind", *SERVE, *flags]
    with ChildServer(command, environ=STARTED_WITH) as server:
        server.wait_until_ready(280)
        yield server


@pytest.mark.thorough
def test_two_data_parallel_engines_answer_alike(
    server: ChildServer, client: OpenAI, two_engines: ChildServer
) -> None:
    both = OpenAI(base_url=f"{two_engines.url}/v1", api_key="none", max_retries=0, timeout=120)
    reports, words = [], []
    for question in ("What is in the black scene?", "Which scene is first?", "Why?", "When?"):
        ask = messages(question, video_part())
        for target in (client, both):
            answer = target.chat.completions.create(
                model=MODEL,
                messages=ask,
                max_tokens=16,
                temperature=0,
                extra_body={"metok": {"decode_keep": 0.25}},  # evicts, as the demo's presets do not
            )
            words.append(answer.choices[0].message.content)
            reports.append(answer.metok)
    assert words[::2] == words[1::2]
    assert reports[::2] == reports[1::2]
    wait_until(lambda: all_free(two_engines), 30)
    states = states_of(two_engines)
    assert len(states) == 2
    assert all(engine["freed_blocks"] > 0 for engine in states), "both engines evicted"
