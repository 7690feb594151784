"""The kernel gate: nothing is measured while a kernel operation gives wrong results.

Every operation is compared with its naive version at small sizes, on the engine's device and with
its implementation. This takes a second; the complete checks are in tests/kernels.
`python -m metok_vllm.benchmarks.throughput.gate` runs the gate alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from metok_vllm.errors import ConfigError
from metok_vllm.kernels import adaptive_pool, attention_mass, event_topk, gather_rows
from metok_vllm.kernels.adaptive_pool import naive as naive_pool
from metok_vllm.kernels.attention_mass import naive as naive_mass
from metok_vllm.kernels.backend import implementation_for
from metok_vllm.kernels.event_topk import naive as naive_topk
from metok_vllm.kernels.gather_rows import naive as naive_gather

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Bounds on the norm of the difference over the norm of the result, as in tests/kernels. Float32
# sums have another order; results of the narrower types are rounded once.
MASS_BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}
POOL_BOUNDS = {torch.float32: 3e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Checked:
    """The result of the gate. `red` maps each wrong operation to its first error."""

    device: str
    implementation: str
    checks: int
    red: Mapping[str, str]

    @property
    def refused(self) -> str | None:
        """Why nothing may be measured; None if all operations are right."""
        if not self.red:
            return None
        wrong = "; ".join(f"{operation}: {error}" for operation, error in self.red.items())
        return f"kernel operations are wrong on {self.device} ({self.implementation}): {wrong}"


class DifferenceError(Exception):
    """An operation and its naive version give different results."""


def engine_device() -> str:
    """The device on which an engine of this machine runs its operations."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_operations(device: str) -> Checked:
    """Compare every operation on `device` with its naive version on the CPU.

    Raises ConfigError for a METOK_KERNELS that the device does not support.
    """
    try:
        implementation = implementation_for(torch.empty(0, device=device))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    red: dict[str, str] = {}
    checks = 0
    for operation, check in _checks(device):
        checks += 1
        try:
            check()
        # A kernel may fail in any way, for example at compilation or on the device.
        except Exception as error:
            red.setdefault(operation, f"{type(error).__name__}: {error}".splitlines()[0])
    return Checked(device, implementation, checks, red)


def _checks(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    for dtype in DTYPES:
        yield "attention_mass", partial(_mass, device, dtype)
        for tied in (False, True):
            yield "event_topk", partial(_topk, device, dtype, tied)
        for mode in ("bilinear", "average", "area"):
            yield "adaptive_pool", partial(_pool, device, dtype, mode)
        yield "gather_rows", partial(_gather, device, dtype)


def _mass(device: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    query_lens, key_lens, scale = (3, 0, 17), (130, 5, 70), 64**-0.5
    q_QHD = torch.randn(20, 4, 64, generator=random).to(dtype)
    k_NGD = torch.randn(205, 2, 64, generator=random).to(dtype)
    expected_N = naive_mass.attention_mass(q_QHD, k_NGD, query_lens, key_lens, scale)
    mass_N = attention_mass.attention_mass(
        q_QHD.to(device), k_NGD.to(device), query_lens, key_lens, scale
    )
    _close(mass_N, expected_N, MASS_BOUNDS[dtype])


def _topk(device: str, dtype: torch.dtype, tied: bool) -> None:
    random = torch.Generator().manual_seed(2)
    score_N = torch.randn(300, generator=random).to(dtype)
    score_N = score_N.round() if tied else score_N
    event_N = torch.randint(0, 7, (300,), generator=random).sort().values
    count_E = (event_N.bincount(minlength=8) * torch.rand(8, generator=random)).long()
    total = int(count_E.sum())
    kept = event_topk.event_topk(score_N.to(device), event_N.to(device), count_E.to(device), total)
    _same(kept, naive_topk.event_topk(score_N, event_N, count_E, total))


def _pool(device: str, dtype: torch.dtype, mode: str) -> None:
    """The single operation, and the encoder's equivalent: pool chunks, then pack."""
    random = torch.Generator().manual_seed(3)
    grid, strides = 9, (2, 4, 8)
    x_TPD = torch.randn(7, grid * grid, 48, generator=random).to(dtype)
    class_T = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    event_T = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    newline_D = torch.randn(48, generator=random).to(dtype)
    expected_ND, expected_N = naive_pool.adaptive_pool(
        x_TPD.double(), class_T, event_T, newline_D.double(), grid, strides, mode
    )
    x, classes, events, newline = (v.to(device) for v in (x_TPD, class_T, event_T, newline_D))
    total = len(expected_N)
    tokens_ND, event_N = adaptive_pool.adaptive_pool(
        x, classes, events, newline, grid, strides, mode, total
    )
    pooled = [adaptive_pool.pool_frames(x, grid, stride, mode) for stride in strides]
    sides = [adaptive_pool.pooled_sides(grid, stride, mode) for stride in strides]
    row_N, packed_N = adaptive_pool.pack_index(classes, events, sides, total)
    packed_ND = torch.cat([*(p.flatten(0, 1) for p in pooled), newline[None]])[row_N]
    for found_ND, found_N in ((tokens_ND, event_N), (packed_ND, packed_N)):
        _same(found_N, expected_N)
        _close(found_ND, expected_ND, POOL_BOUNDS[dtype])


def _gather(device: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(4)
    hidden_ND = torch.randn(100, 96, generator=random).to(dtype)
    index_M = torch.randperm(100, generator=random)[:63].sort().values
    given = (hidden_ND, hidden_ND + 1, torch.arange(100))
    gathered = gather_rows.gather_rows(index_M.to(device), *(x.to(device) for x in given))
    for found, wanted in zip(gathered, naive_gather.gather_rows(index_M, *given), strict=True):
        assert wanted is not None
        _same(found, wanted)


def _same(found: Tensor, wanted: Tensor) -> None:
    found = found.cpu()
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise DifferenceError(
            f"{list(found.shape)} {found.dtype}, not {list(wanted.shape)} {wanted.dtype}"
        )
    if not torch.equal(found, wanted):
        raise DifferenceError(f"{int((found != wanted).sum())} of {wanted.numel()} numbers differ")


def _close(found: Tensor, wanted: Tensor, bound: float) -> None:
    if found.shape != wanted.shape:
        raise DifferenceError(f"{list(found.shape)}, not {list(wanted.shape)}")
    error = float((found.cpu().double() - wanted.double()).norm() / wanted.double().norm())
    if not error <= bound:  # false for NaN, too
        raise DifferenceError(f"error {error:.3g} over {bound:.3g}")


def main() -> int:
    """Print the result as JSON; returns 1 if an operation is wrong."""
    found = check_operations(engine_device())
    print(json.dumps(asdict(found)))
    return int(found.refused is not None)


if __name__ == "__main__":
    sys.exit(main())
