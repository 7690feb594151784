"""Rows, positions and lengths of a batch as each pruning stage sees it.

Stage 0 sees what vLLM sees. In later stages a METok prompt has fewer rows while it is prefilled and
a shorter sequence afterwards. All of it is arithmetic on a handful of numbers per request, done on
the host before the step runs; rotary positions stay those of the prompt.

Shape suffixes: S stages, R requests of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.plan.step import StagedPrompt, StagedStep

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchPlans:
    """What is constant while the batch has the same requests in the same order.

    `prompt_R` is the prompt's length where a request has a plan, else 0.
    """

    request_ids: tuple[str, ...]
    plans: tuple[PromptPlan | None, ...]
    prompt_R: Ints
    prefill_dropped_SR: Ints
    decode_dropped_SR: Ints
    decodes_as: tuple[int, ...]  # of each stage, the first one that decodes with the same lengths

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
            assert not plan.one_step or scheduled_R[r] == plan.prompt_tokens, "a prompt runs whole"
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
