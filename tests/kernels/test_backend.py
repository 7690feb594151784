"""Which implementation runs, and what is said about inputs outside a contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metok_vllm.kernels import attention_mass as mass_package
from metok_vllm.kernels.adaptive_pool import adaptive_pool
from metok_vllm.kernels.attention_mass import attention_mass
from metok_vllm.kernels.backend import VARIABLE, implementation_for
from metok_vllm.kernels.event_topk import event_topk
from metok_vllm.kernels.gather_rows import gather_rows

x = torch.zeros(4, 2, 8)
index = torch.arange(4)


@pytest.mark.parametrize("value", [None, "", "auto", "torch", " Torch "])
def test_torch_serves_the_cpu(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    assert implementation_for(torch.zeros(1)) == "torch"


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"METOK_KERNELS=triton needs tensors on CUDA.*cpu"):
        gather_rows(index, x)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert implementation_for(x) == "triton"


def test_an_unknown_implementation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="auto, torch, triton, got 'cuda'"):
        gather_rows(index, x)


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    q_QHD, k_NGD = torch.randn(7, 4, 8), torch.randn(30, 2, 8)
    whole = attention_mass(q_QHD, k_NGD, [7], [30], 0.35)
    monkeypatch.setattr(mass_package.eager, "MAX_LOGITS", 2 * 30 * 3)
    torch.testing.assert_close(attention_mass(q_QHD, k_NGD, [7], [30], 0.35), whole)


def test_no_row_is_left_undecided_by_counts_that_do_not_add_up() -> None:
    score_N, event_N = torch.arange(6.0), torch.tensor([0, 0, 0, 1, 1, 1])
    for counts in ([1, 1], [3, 3], [0, 0]):
        kept = event_topk(score_N, event_N, torch.tensor(counts), 4)
        assert kept.shape == (4,)
        assert ((kept >= 0) & (kept < 6)).all()


def _separated(**where: Any) -> object:
    return adaptive_pool(x[:, :1], index, index, x[0, 0], 1, (2, 4, 8), "area", **where)


REFUSED: list[tuple[str, Callable[[], object]]] = [
    (
        r"H a multiple of G; got queries \[4, 3, 8\] torch.float32",
        lambda: attention_mass(torch.zeros(4, 3, 8), x, [4], [4], 1.0),
    ),
    (
        r"queries \[4, 2, 8\] torch.float64",
        lambda: attention_mass(x.double(), x.double(), [4], [4], 1.0),
    ),
    (
        r"keys \[4, 2, 8\] torch.float16",
        lambda: attention_mass(x, x.half(), [4], [4], 1.0),
    ),
    (
        r"keys \[4, 2, 4\] torch.float32",
        lambda: attention_mass(x, x[..., :4], [4], [4], 1.0),
    ),
    (
        r"0 <= queries <= keys; got query_lens \[4\], key_lens \[3\]",
        lambda: attention_mass(x, x[:3], [4], [3], 1.0),
    ),
    (r"got query_lens \[4\], key_lens \[\]", lambda: attention_mass(x, x, [4], [], 1.0)),
    (
        r"3 queries and 4 keys as the lengths say; got queries \[4, 2, 8\]",
        lambda: attention_mass(x, x, [3], [4], 1.0),
    ),
    (
        r"scores \[4\] torch.int64",
        lambda: event_topk(index, index, index, 1),
    ),
    (
        r"events \[4\] torch.int32",
        lambda: event_topk(torch.zeros(4), index.int(), index, 1),
    ),
    (
        r"0 <= 5 <= N; got scores \[4\] torch.float32",
        lambda: event_topk(torch.zeros(4), index, index, 5),
    ),
    (r"index \[4\] torch.float32", lambda: gather_rows(torch.zeros(4), x)),
    (
        r"equally many rows.*tensor \[3, 2, 8\] torch.float32",
        lambda: gather_rows(index, x, x[:3]),
    ),
    (
        r"at most 8 bytes.*torch.complex128",
        lambda: gather_rows(index, x.to(torch.complex128)),
    ),
    (
        r"float features \[T, 3x3, D\]; got features \[4, 2, 8\]",
        lambda: adaptive_pool(x, index, index, x[0, 0], 3, (2, 4, 8)),
    ),
    (
        r"classes \[4\] torch.int32",
        lambda: adaptive_pool(x[:, :1], index.int(), index, x[0, 0], 1, (2, 4, 8)),
    ),
    (
        "'max'",
        lambda: adaptive_pool(x[:, :1], index, index, x[0, 0], 1, (2, 4, 8), "max"),
    ),
    ("closes_events=False, got True", lambda: _separated(separator_SD=x[0], head_T=index)),
    (
        r"separators \[S, D\] are needed",
        lambda: _separated(closes_events=False, tail_T=index),
    ),
    (
        r"separators \[S, 8\] beside the features; got separators \[2, 7\]",
        lambda: _separated(closes_events=False, separator_SD=x[0, :, 1:], head_T=index),
    ),
    (
        r"numbers of separators \[4\] beside the features; got head \[3\]",
        lambda: _separated(closes_events=False, separator_SD=x[0], head_T=index[1:]),
    ),
    (
        r"tail \[4\] torch.int32",
        lambda: _separated(closes_events=False, separator_SD=x[0], tail_T=index.int()),
    ),
]


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[message for message, _ in REFUSED])
def test_inputs_outside_the_contract_are_refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
