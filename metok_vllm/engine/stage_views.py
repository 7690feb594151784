"""Lengths, positions and attention metadata of one stage of a step.

vLLM's own values hold for stage 0; the others have rows and lengths of their own (step.py).

Shape suffixes: R requests of the batch, N rows.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metok_vllm.devices import array_on
from metok_vllm.engine.step import Ints


@dataclass(frozen=True)
class StageView:
    """Lengths and positions of one stage, on the device and, where vLLM needs it, on the host.

    `stock_rows`: every request has the rows that vLLM gave it. `slot_start_R1` counts all requests
    of the batch; the other values those with rows, `request_R` (None: all of them).
    """

    slot_start_R1: Tensor
    query_start_R1: Tensor
    query_start_host_R1: Tensor
    length_R: Tensor
    length_host_R: Tensor
    position_N: Tensor
    position_host_N: npt.NDArray[np.int64]
    rows: int
    longest_query: int
    longest: int
    stock_rows: bool
    request_R: Tensor | None = None
    request_host_R: Tensor | None = None

    @classmethod
    def of(
        cls, query_R: Ints, start_R: Ints, device: torch.device, stock_rows: bool = False
    ) -> StageView:
        """From the rows of each request and the cache position of its first one."""
        slot_start_R1 = np.zeros(len(query_R) + 1, dtype=np.int32)
        np.cumsum(query_R, out=slot_start_R1[1:])
        offset_R = start_R.astype(np.int64) - slot_start_R1[:-1]
        rows = int(slot_start_R1[-1])
        position_N = np.repeat(offset_R, query_R) + np.arange(rows, dtype=np.int64)
        on_device = array_on(slot_start_R1, device)
        kept_R = np.flatnonzero(query_R)
        request_R = request_host_R = None
        start_R1 = slot_start_R1
        query_start = on_device
        if 0 < len(kept_R) < len(query_R):
            # Backends differ in what they make of a request without rows.
            request_R, request_host_R = array_on(kept_R, device), torch.from_numpy(kept_R)
            query_R, start_R = query_R[kept_R], start_R[kept_R]
            start_R1 = np.append(slot_start_R1[kept_R], slot_start_R1[-1:])
            query_start = array_on(start_R1, device)
        length_R = np.ascontiguousarray(start_R + query_R, dtype=np.int32)
        return cls(
            on_device,
            query_start,
            torch.from_numpy(start_R1),
            array_on(length_R, device),
            torch.from_numpy(length_R),
            array_on(position_N, device),
            position_N,
            rows,
            int(query_R.max()),
            int(length_R.max()),
            stock_rows,
            request_R,
            request_host_R,
        )

    def of_metadata(self, common: Any) -> Any:
        """A copy of vLLM's CommonAttentionMetadata with this stage's lengths and rows."""
        ours = copy(common)
        if self.request_R is not None:
            ours.num_reqs = len(self.request_R)
            ours.block_table_tensor = common.block_table_tensor.index_select(0, self.request_R)
            if common.is_prefilling is not None:
                ours.is_prefilling = common.is_prefilling[self.request_host_R]
        padding = ours.num_reqs - len(self.length_R)
        ours.seq_lens = _padded(self.length_R, padding)
        ours.seq_lens_cpu_upper_bound = _padded(self.length_host_R, padding)
        ours.max_seq_len = self.longest
        if not self.stock_rows:
            ours.query_start_loc = _padded(self.query_start_R1, padding, last=True)
            ours.query_start_loc_cpu = _padded(self.query_start_host_R1, padding, last=True)
            ours.num_actual_tokens = self.rows
            ours.max_query_len = self.longest_query
            ours.positions = None
        # vLLM computes these on first use.
        ours._num_computed_tokens_cache = None
        ours._token_to_req_indices_cache = None
        return ours


class StageViews:
    """The views of the current step by stage; a stage without one uses vLLM's own values."""

    def __init__(self) -> None:
        self._views: dict[int, StageView] = {}
        self._common: Any = None

    def clear(self) -> None:
        """Drop the views of the last step."""
        self._views.clear()
        self._common = None

    def keep_common(self, common: Any) -> None:
        """Keep vLLM's CommonAttentionMetadata of this step, for row blocks."""
        self._common = common

    def common(self, block_table: Tensor, slot_N: Tensor) -> Any:
        """A copy of it with the block table and the slots of a cache group."""
        ours = copy(self._common)
        ours.block_table_tensor, ours.slot_mapping, ours.num_reqs = (
            block_table,
            slot_N,
            len(block_table),
        )
        return ours

    def put(self, stage: int, view: StageView | None) -> None:
        """Set the view of a stage; stages with equal rows and lengths share one."""
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
