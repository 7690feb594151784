"""The kernel gate reports a broken operation, however it is broken, and no other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metok_vllm import cli
from metok_vllm.benchmarks.quality import command as quality_command
from metok_vllm.benchmarks.throughput import gate, servers
from metok_vllm.kernels.backend import VARIABLE

KERNELS = "metok_vllm.kernels"


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")


def broken(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, change: Callable[[Any], Any]
) -> None:
    """The operation's torch version, with its result changed."""
    where = importlib.import_module(f"{KERNELS}.{module}")
    right = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args: change(right(*args)))


def one_off(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] += 1
    return x


def not_a_number(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[0] = torch.nan
    return x


def test_what_is_right_passes() -> None:
    found = gate.check_operations("cpu")
    assert found.red == {}
    assert found.refused is None
    assert (found.device, found.implementation) == ("cpu", "torch")
    operations = {operation for operation, _ in gate._checks("cpu")}
    folders = (Path(gate.__file__).parents[2] / "kernels").glob("*/naive.py")
    assert operations == {path.parent.name for path in folders}


@pytest.mark.parametrize(
    ("operation", "module", "change"),
    [
        ("attention_mass", "attention_mass.eager", lambda x: x * (1 + 1e-3)),
        ("attention_mass", "attention_mass.eager", not_a_number),
        ("event_topk", "event_topk.eager", one_off),
        ("event_topk", "event_topk.eager", lambda x: x[:-1]),
        ("event_topk", "event_topk.eager", lambda x: x.int()),
        ("adaptive_pool", "adaptive_pool.packed", lambda x: (x[0] * 1.01, x[1])),
        ("adaptive_pool", "adaptive_pool.packed", lambda x: (x[0], one_off(x[1]))),
        ("gather_rows", "gather_rows.eager", lambda x: (*x[:-1], x[-1].flip(0))),
        ("gather_rows", "gather_rows.eager", lambda x: 1 / 0),
    ],
)
def test_a_broken_operation_is_red_and_no_other(
    operation: str, module: str, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, module, operation, change)
    found = gate.check_operations("cpu")
    assert list(found.red) == [operation]
    assert f"{operation}: " in str(found.refused)


@pytest.mark.parametrize("name", ["pool_frames", "pack_index"])
def test_what_the_encoder_does_in_place_of_one_operation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under their public names alone: on a GPU `adaptive_pool` does without them.
    where = importlib.import_module(f"{KERNELS}.adaptive_pool")
    right = getattr(where, name)

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return found * 1.01 if name == "pool_frames" else (found[0].flip(0), found[1])

    monkeypatch.setattr(where, name, wrong)
    assert list(gate.check_operations("cpu").red) == ["adaptive_pool"]


@pytest.mark.parametrize("mode", ["speed", "quality"])
def test_nothing_is_measured_with_a_red_operation(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was started")

    monkeypatch.setattr(servers, "pair", never)
    monkeypatch.setattr(quality_command, "run", never)
    broken(monkeypatch, "gather_rows.eager", "gather_rows", lambda x: (x[0] * 2, *x[1:]))
    options = ["--quality", str(tmp_path)] if mode == "quality" else []
    arguments = ["bench", "--checkpoint", "demo", "--result-dir", str(tmp_path / "out"), *options]
    arguments.append("--json")
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "kernel operations are wrong on cpu (torch): gather_rows: Diff" in captured.err
    assert "times as good" not in captured.out
    line = json.loads(captured.out)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for record in (line, result):
        assert "gather_rows" in record["refused"]
        assert list(record["kernels"]["red"]) == ["gather_rows"]
        assert record["cells"] == []
        assert record["benchmark"] == ("quality" if mode == "quality" else "throughput")
