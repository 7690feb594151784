"""One stage's view of a batch, as tensors that vLLM's attention metadata takes.

Shape suffixes: R requests, N rows.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metok_vllm.devices import array_on
from metok_vllm.engine.geometry import BatchGeometry


@dataclass(frozen=True)
class StageView:
    """Lengths and positions of one stage, on the device and, where vLLM asks, on the host."""

    query_start_R1: Tensor
    query_start_host_R1: Tensor
    length_R: Tensor
    length_host_R: Tensor
    position_N: Tensor
    rows: int
    longest_query: int
    longest: int
    stock_rows: bool

    @classmethod
    def of(
        cls, geometry: BatchGeometry, stage: int, device: torch.device, stock_rows: bool
    ) -> StageView:
        """From a step's geometry; `stock_rows` when every request has the rows vLLM gave it."""
        query_R, length_R = geometry.query_SR[stage], geometry.length_SR[stage]
        start_R1 = np.zeros(len(query_R) + 1, dtype=np.int32)
        np.cumsum(query_R, out=start_R1[1:])
        length_R = np.ascontiguousarray(length_R, dtype=np.int32)
        return cls(
            array_on(start_R1, device),
            torch.from_numpy(start_R1),
            array_on(length_R, device),
            torch.from_numpy(length_R),
            array_on(geometry.positions(stage), device),
            int(start_R1[-1]),
            int(query_R.max()),
            int(length_R.max()),
            stock_rows,
        )

    def of_metadata(self, common: Any) -> Any:
        """vLLM's CommonAttentionMetadata as this stage sees the batch."""
        ours = copy(common)
        padding = common.num_reqs - len(self.length_R)
        ours.seq_lens = _padded(self.length_R, padding)
        ours.seq_lens_cpu_upper_bound = _padded(self.length_host_R, padding)
        ours.max_seq_len = self.longest
        if not self.stock_rows:
            ours.query_start_loc = _padded(self.query_start_R1, padding, last=True)
            ours.query_start_loc_cpu = _padded(self.query_start_host_R1, padding, last=True)
            ours.num_actual_tokens = self.rows
            ours.max_query_len = self.longest_query
            ours.positions = None
        # vLLM computes these once from the lengths and keeps them.
        ours._num_computed_tokens_cache = None
        ours._token_to_req_indices_cache = None
        return ours


class StageViews:
    """The views of the current step, by stage; a stage without one sees what vLLM sees."""

    def __init__(self) -> None:
        self._views: dict[int, StageView] = {}

    def clear(self) -> None:
        """A new step begins."""
        self._views.clear()

    def put(self, stage: int, view: StageView | None) -> None:
        """The view of one stage; stages that see the same share one."""
        if view is not None:
            self._views[stage] = view

    def of(self, stage: int) -> StageView | None:
        """The view of `stage`, or None."""
        return self._views.get(stage)


def _padded(values: Tensor, padding: int, last: bool = False) -> Tensor:
    if padding <= 0:
        return values
    fill = values[-1:] if last else values.new_zeros(1)
    return torch.cat([values, fill.expand(padding)])
