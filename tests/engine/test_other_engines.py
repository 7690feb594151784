"""Tensor parallelism, asynchronous scheduling, torch.compile and Triton change no answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.answers_program import answers, prompts, qwen_prompts, qwen_turns, turns
from tests.engine.checkpoints import Checkpoint
from tests.engine.engines import UNTRAINED, EnginePool, reset_caches
from tests.engine.prompts import logprobs, token_ids
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL
from tests.untrained import ALIGNMENT_DIR

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

ROOT = Path(__file__).resolve().parents[2]


def answers_of(
    settings: dict[str, Any], kernels: dict[str, str], model: Path | None = None
) -> dict[str, Any]:
    """The answers of an engine in processes of its own; `model` is that of a Qwen family."""
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if "tensor_parallel_size" in settings else "0",
        # Two ranks on a machine that may have a single memory node and two cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        **kernels,
    }
    command = [sys.executable, "-m", "tests.engine.answers_program", json.dumps(settings)]
    command += [] if model is None else [str(model)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


# Two chunks for most prompts, and later stages in row blocks.
SHORT_STEPS: dict[str, Any] = {"max_num_batched_tokens": 128, "max_num_seqs": 8}
RANKS, AHEAD, COMPILED = (
    {"tensor_parallel_size": 2},
    {"schedule_ahead": True, **SHORT_STEPS},
    {"enforce_eager": False, **SHORT_STEPS},
)


# The kernels that run on CUDA, in Triton's interpreter.
TRITON = {"METOK_KERNELS": "triton", "TRITON_INTERPRET": "1"}


@pytest.fixture(scope="module")
def expected(engines: EnginePool, metok: Any) -> dict[bool, list[Any]]:
    """The answers of one synchronous, eager process, by whether its steps are short."""
    config = {"metok": {"alignment_model": str(ALIGNMENT_DIR)}}
    short = engines.get(**{**UNTRAINED, **SHORT_STEPS}, additional_config=config)
    found = {}
    for is_short, engine in ((False, metok), (True, short)):
        reset_caches(engine)
        found[is_short] = answers(engine, prompts(), turns())
    return found


@pytest.mark.parametrize(
    ("settings", "kernels"),
    [(AHEAD, {}), (COMPILED, {}), ({}, TRITON), (RANKS | SHORT_STEPS, {})],
    ids=["asynchronous", "compiled", "Triton kernels", "tensor parallel"],
)
def test_other_engines_answer_alike(
    expected: dict[bool, list[Any]], settings: dict[str, Any], kernels: dict[str, str]
) -> None:
    check(
        answers_of(settings, kernels), expected[SHORT_STEPS.items() <= settings.items()], settings
    )


@pytest.mark.parametrize(
    ("family", "settings"),
    [(QWEN3_VL, RANKS | SHORT_STEPS), (QWEN2_5_VL, AHEAD)],
)
def test_qwen_s_families_do_as_well(
    engines: EnginePool,
    checkpoint_of: Callable[[str], Checkpoint],
    family: str,
    settings: dict[str, Any],
) -> None:
    """Positions and deepstack's features reach every rank and step."""
    model = checkpoint_of(family).folder
    own = {**UNTRAINED, **SHORT_STEPS, "model": str(model), "block_size": 32}
    engine = engines.get(**own, num_gpu_blocks_override=4096, additional_config={"metok": {}})
    reset_caches(engine)
    wanted = answers(engine, qwen_prompts(), qwen_turns())
    check(answers_of(settings, {}, model), wanted, settings)


def check(result: dict[str, Any], wanted: list[Any], settings: dict[str, Any]) -> None:
    assert result["schedules_ahead"] is bool(settings.get("schedule_ahead"))
    assert result["tokens"] == [token_ids(output) for output in wanted]
    for got, output in zip(result["logprobs"], wanted, strict=True):
        assert got == pytest.approx(logprobs(output), abs=1e-3)
    assert len(result["books"]) == settings.get("tensor_parallel_size", 1)
    for books in result["books"]:
        assert books == result["books"][0]
        assert books["freed_blocks"] > 0
        assert books["requests"] == {}
        assert (books["prefix_hits"], books["prefix_records"]) == (3, 2)
        assert books["free_blocks"] == books["total_blocks"]
