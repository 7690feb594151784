"""`metok serve MODEL` at default sizes prunes prompts that are longer than one step.

Qwen3-VL's server in test_qwen_vl_server.py has every flag at its default; compiling takes minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from metok_vllm.demo import MODEL_DIR, SAMPLE_QUESTION
from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.conformance.requests import chat_body, post, video_part
from tests.environment import STARTED_WITH
from tests.layouts import square

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]

FRAMES, GRID = 128, 8
BUDGET = 2048  # vLLM's default for a server on a CPU
LONG_QUESTION = "One of these scenes has a red circle. " * 250 + SAMPLE_QUESTION


@pytest.fixture(scope="module")
def server() -> Iterator[ChildServer]:
    # Flags are vLLM's own; the memory for the KV cache is what this machine can spare.
    environ = {**STARTED_WITH, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with ChildServer([*SERVE, str(MODEL_DIR), "--enforce-eager"], environ=environ) as server:
        try:
            server.wait_until_ready(400)
        except Exception:
            sys.stderr.write(server.log_tail(60))
            raise
        yield server


@pytest.mark.parametrize(
    ("question", "metok"),
    [(SAMPLE_QUESTION, {"stages": [2, 3]}), (LONG_QUESTION, {})],
    ids=["all frames dense", "a long question"],
)
def test_a_prompt_longer_than_a_step_is_pruned(
    server: ChildServer, question: str, metok: dict[str, Any]
) -> None:
    options = {"media_io_kwargs": {"video": {"num_frames": FRAMES}}, "metok": metok}
    response = post(server, chat_body(question, video_part(), model=str(MODEL_DIR), **options))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["prompt_tokens"] > BUDGET
    report = answer["metok"]
    assert report["unpruned"] is None
    assert report["visual_tokens"]["dense"] == square(FRAMES, GRID).dense_tokens()
    stages = report["visual_tokens"]["stages"]
    assert len(stages) == 4
    assert stages == sorted(set(stages), reverse=True), "each stage has fewer than the one before"
    assert stages[0] == report["visual_tokens"]["encoded"]
    assert stages[3] == 0
    blocks = report["kv_blocks"]
    assert blocks["decode"] < blocks["prefill"] < blocks["dense"]


def test_the_budget_is_vllm_s_default(server: ChildServer) -> None:
    """The start-up log says what a request costs at this budget."""
    log = server.log.read_text(encoding="utf-8", errors="replace")
    (line,) = [line for line in log.splitlines() if "METok: a request of 128 frames" in line]
    assert f"2 / 1 prefill steps of at most {BUDGET} tokens" in line
