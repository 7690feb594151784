"""Rows, cache positions and lengths of a step's batch in each stage of the decoder.

Stage 0 has those that vLLM computed. In later stages a METok prompt has fewer rows in its prefill
and a shorter sequence afterwards. They follow from a few numbers per request and are computed on
the host before the step runs; rotary positions stay those of the prompt.

Shape suffixes: S stages, R requests of the batch, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metok_vllm.devices import array_on
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.plan.step import StagedPrompt, StagedStep

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchPlans:
    """The plans of a batch, constant while it has the same requests in the same order.

    `prompt_R` is the prompt's length where a request has a plan, else 0.
    """

    request_ids: tuple[str, ...]
    plans: tuple[PromptPlan | None, ...]
    prompt_R: Ints
    prefill_dropped_SR: Ints
    decode_dropped_SR: Ints
    decodes_as: tuple[int, ...]  # by stage: the first stage with the same lengths in decoding

    @classmethod
    def of(cls, request_ids: Sequence[str], plans: Sequence[PromptPlan | None]) -> BatchPlans:
        """Tables for a batch in which at least one request has a plan."""
        none = (0,) * NUM_STAGES
        prefill = [p.prefill_dropped if p is not None and p.one_step else none for p in plans]
        decode = [p.decode_dropped if p is not None else none for p in plans]
        by_stage = list(zip(*decode, strict=True))
        return cls(
            tuple(request_ids),
            tuple(plans),
            np.array([p.prompt_tokens if p is not None else 0 for p in plans], dtype=np.int32),
            np.array(prefill, dtype=np.int32).T.copy(),
            np.array(by_stage, dtype=np.int32),
            tuple(by_stage.index(dropped) for dropped in by_stage),
        )


@dataclass(frozen=True)
class BatchGeometry:
    """One step: rows of each request, cache position of the first one, tokens in its cache after.

    `staged` are the METok prompts in it, if any.
    """

    query_SR: Ints
    start_SR: Ints
    length_SR: Ints
    staged: StagedStep | None

    @classmethod
    def of(cls, batch: BatchPlans, computed_R: Ints, scheduled_R: Ints) -> BatchGeometry:
        """From the tokens computed before and scheduled in this step, in the batch's order."""
        prefilling_R = computed_R < batch.prompt_R
        dropped_SR = np.where(prefilling_R, 0, batch.decode_dropped_SR)
        start_SR = computed_R - dropped_SR
        if not prefilling_R.any():
            query_SR = np.broadcast_to(scheduled_R, dropped_SR.shape)
            return cls(query_SR, start_SR, start_SR + query_SR, None)
        query_SR = scheduled_R - np.where(prefilling_R, batch.prefill_dropped_SR, 0)
        first_SR = query_SR.cumsum(1) - query_SR
        prompts = []
        for r in np.flatnonzero(prefilling_R):
            plan = batch.plans[r]
            assert plan is not None
            assert not plan.one_step or scheduled_R[r] == plan.prompt_tokens, (
                "a prompt runs in one step"
            )
            first, rows = tuple(first_SR[:, r].tolist()), tuple(query_SR[:, r].tolist())
            identity = batch.request_ids[r]
            prompts.append(StagedPrompt(identity, plan, int(computed_R[r]), first, rows))
        staged = StagedStep(tuple(prompts), tuple(query_SR.sum(1).tolist()))
        return cls(query_SR, start_SR, start_SR + query_SR, staged)

    def positions(self, stage: int) -> npt.NDArray[np.int64]:
        """Cache position of every row of a stage."""
        query_R = self.query_SR[stage]
        first_R = query_R.cumsum() - query_R
        offset_R = self.start_SR[stage].astype(np.int64) - first_R
        positions: npt.NDArray[np.int64] = np.repeat(offset_R, query_R)
        return positions + np.arange(len(positions), dtype=np.int64)


@dataclass(frozen=True)
class StageView:
    """Lengths and positions of one stage, on the device and, where vLLM needs it, on the host.

    `stock_rows`: every request has the rows that vLLM gave it.
    """

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
        """From a step's geometry."""
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
        """A copy of vLLM's CommonAttentionMetadata with this stage's lengths and rows."""
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
        # vLLM computes these from the lengths on first use.
        ours._num_computed_tokens_cache = None
        ours._token_to_req_indices_cache = None
        return ours


class StageViews:
    """The views of the current step by stage; a stage without one uses vLLM's own values."""

    def __init__(self) -> None:
        self._views: dict[int, StageView] = {}

    def clear(self) -> None:
        """Drop the views of the last step."""
        self._views.clear()

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
