"""Sensitivity curves: the divergence when one part of METok acts at one layer alone.

`drop[k]`: no visual token from layer k on. `first[r][k]` and `second[r][k]`: only METok's first or
second selection, at layer k with keep ratio r. `decode[k]`: a dense prefill, after which decoding
attends only to text from layer k on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metok_vllm.benchmarks.calibration.kl_to_dense import Divergence
from metok_vllm.benchmarks.calibration.measure import Meter
from metok_vllm.benchmarks.calibration.setting import Setting

Curve = dict[int, Divergence]  # by layer


@dataclass(frozen=True)
class Curves:
    """All curves; `first` and `second` by keep ratio."""

    drop: Curve
    decode: Curve
    first: dict[float, Curve]
    second: dict[float, Curve]

    def least_layer(self, budget: float) -> int | None:
        """The least layer such that dropping all visual tokens from it, or from any later layer,
        stays within the budget; None if there is none."""
        least = None
        for layer in sorted(self.drop, reverse=True):
            if self.drop[layer].worst > budget:
                break
            least = layer
        return least

    def predicted(self, boundaries: tuple[int, int, int], keep_ratio: float) -> float:
        """The sum of the divergences that the three boundaries have alone."""
        p0, p1, p2 = boundaries
        first, second = self.first[keep_ratio][p0], self.second[keep_ratio][p1]
        return first.worst + second.worst + self.drop[p2].worst

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "drop": _plain(self.drop),
            "decode": _plain(self.decode),
            "first": {str(ratio): _plain(curve) for ratio, curve in self.first.items()},
            "second": {str(ratio): _plain(curve) for ratio, curve in self.second.items()},
        }


def measure_curves(meter: Meter, keep_ratios: Sequence[float]) -> Curves:
    """Every curve over every layer of the decoder."""
    L = meter.model.decoder.num_layers
    drop = {k: Setting((k, k, k), drops=(3,)) for k in range(L)}
    decode = {k: Setting((k, L, L), decode_keep=0.0, drops=()) for k in range(L)}
    first = {r: {k: Setting((k, L, L), r, drops=(1,)) for k in range(1, L)} for r in keep_ratios}
    second = {r: {k: Setting((k, k, L), r, drops=(2,)) for k in range(1, L)} for r in keep_ratios}
    # Measured together, they share each prompt's dense run.
    together = [drop, decode, *first.values(), *second.values()]
    meter.measure([s for by_layer in together for s in by_layer.values()], "curves")
    return Curves(
        _curve(meter, drop),
        _curve(meter, decode),
        {ratio: _curve(meter, by_layer) for ratio, by_layer in first.items()},
        {ratio: _curve(meter, by_layer) for ratio, by_layer in second.items()},
    )


def _curve(meter: Meter, by_layer: dict[int, Setting]) -> Curve:
    found = meter.measure(list(by_layer.values()), "curves")
    return dict(zip(by_layer, found, strict=True))


def _plain(curve: Curve) -> list[dict[str, Any]]:
    return [{"layer": layer, **asdict(value)} for layer, value in curve.items()]
