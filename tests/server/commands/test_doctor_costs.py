"""`metok doctor MODEL`: what a request costs at the flags of `metok serve MODEL`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from metok_vllm.config import METokConfig
from metok_vllm.demo import MODEL_DIR
from metok_vllm.plan.families import video_layout
from tests.layouts import square
from tests.reference.qwen_vl_checkpoint import write_checkpoint
from tests.reference.qwen_vl_config import QWEN_VL

# Each case is a process of ten seconds.
THOROUGH = pytest.mark.thorough

GRID = 8  # patches on a side of the demo model's frames


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metok_vllm.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def costs(*flags: str, model: Path = MODEL_DIR) -> dict[str, Any]:
    result = doctor(str(model), *flags, "--json")
    assert result.returncode == 0, result.stderr
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The costs at default flags."""
    return costs()


def test_default_flags(shown: dict[str, Any]) -> None:
    assert shown["model"] == str(MODEL_DIR)
    assert [request["frames"] for request in shown["requests"]] == [32, 64, 128]
    for request in shown["requests"]:
        dense = square(request["frames"], GRID).dense_tokens()
        assert request["dense"]["visual_tokens"] == dense
        assert request["metok"]["visual_tokens"] < dense
        blocks = request["kv_blocks"]
        assert blocks["decode"] < blocks["prefill"] < blocks["dense"]
    # Twice --max-model-len.
    assert shown["prefill_buffer"]["rows"] == 2 * shown["max_model_len"] == 2 * 32768


@THOROUGH
@pytest.mark.parametrize("family", QWEN_VL)
def test_qwen_s_models_by_their_configuration(family: str, tmp_path: Path) -> None:
    """Layouts, presets of the family, and a buffer row with a position on three axes."""
    write_checkpoint(tmp_path / "model", family)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    shown = costs(model=tmp_path / "model")
    metok = METokConfig.load(environ={}, family=family)
    assert shown["assumed"] == {"height": 448, "width": 798, "fps": 2.0}
    for request in shown["requests"]:
        video = video_layout(config, request["frames"])
        assert request["dense"]["visual_tokens"] == video.dense_tokens()
        assert request["metok"]["visual_tokens"] == video.encoded_tokens(metok)
    rows = shown["prefill_buffer"]["rows"]
    assert shown["prefill_buffer"]["bytes"] == rows * (2 * (128 + 2 * 32) + 3 * 8)


@THOROUGH
def test_flags_decide_the_cost() -> None:
    shown = costs(
        "--max-num-batched-tokens", "256", "--max-num-seqs", "8", "--max-model-len", "1500",
        "--block-size", "32", "--metok-prefill-buffer-tokens", "2000", "--dtype", "float32",
    )  # fmt: skip
    assert (shown["chunk_tokens"], shown["block_size"]) == (256, 32)
    # float32: a hidden state of 128, two heads of 32, and a position.
    assert shown["prefill_buffer"] == {"rows": 2000, "bytes": 2000 * (4 * (128 + 64) + 8)}
    last = shown["requests"][-1]
    assert (last["dense"]["fits"], last["metok"]["fits"]) == (False, True)
    for kind in ("dense", "metok"):
        assert last[kind]["prefill_steps"] == -(-last[kind]["prompt_tokens"] // 256)
    # 435, 305 and no visual tokens, and 60 of text, in blocks of 256.
    assert last["metok"]["row_blocks"] == [2, 2, 1]


@THOROUGH
def test_the_table_has_the_same_numbers(shown: dict[str, Any]) -> None:
    result = doctor(str(MODEL_DIR))
    assert result.returncode == 0, result.stderr
    lines = {line[:16].strip(): line[16:].split() for line in result.stdout.splitlines()}
    expected = [
        f"{request[kind]['visual_tokens']:,}"
        for request in shown["requests"]
        for kind in ("dense", "metok")
    ]
    assert lines["visual tokens"] == expected
    assert f"{shown['prefill_buffer']['rows']:,} rows" in result.stdout


@THOROUGH
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("/no/such/model",), 1, "/no/such/model cannot be served: "),
        ((str(MODEL_DIR), "--metok-keep-ratio", "7"), 2, "keep_ratio must be in (0, 1], got 7"),
        ((str(MODEL_DIR), "--no-such-flag", "1"), 2, "--no-such-flag"),
        ((str(MODEL_DIR / "alignment"),), 1, "does not support the architecture SiglipModel"),
        ((str(MODEL_DIR), "--metok-media-max-frames", "1025"), 2, "at most 1024, got 1025"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = doctor(*arguments)
    assert result.returncode == status
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("metok:")]
    assert message in line
    assert "Traceback" not in result.stderr
    assert "usage" not in result.stderr
