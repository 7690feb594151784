"""Rows, cache positions and lengths of a step's batch in each stage of the decoder.

Stage 0 has those that vLLM computed. Stages 1 to 3 have no rows of a METok prompt until its last
chunk, then rows of the whole prompt at once, and a shorter sequence afterwards. They follow from a
few numbers per request and are computed on the host before the step runs; rotary positions stay
those of the prompt.

Shape suffixes: S stages, R requests of the batch, N rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.plan.step import StagedPrompt, StagedStep

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchPlans:
    """The plans of a batch, constant while it has the same requests in the same order.

    `prompt_R` is the prompt's length where a request has a plan and began it; 0 where it has none
    or goes on from another's. From `decode_from_R` tokens on it sees what decoding holds; `waits`:
    that may be later than the prompt's last chunk.
    """

    request_ids: tuple[str, ...]
    plans: tuple[PromptPlan | None, ...]
    prompt_R: Ints
    decode_from_R: Ints
    prefill_dropped_SR: Ints
    decode_dropped_SR: Ints
    waits: bool
    decodes_as: tuple[int, ...]  # by stage: the first stage with the same lengths in decoding

    @classmethod
    def of(
        cls,
        request_ids: Sequence[str],
        plans: Sequence[PromptPlan | None],
        hits: Collection[str] = (),
    ) -> BatchPlans:
        """Tables for a batch in which at least one request has a plan; `hits` go on from another's
        prompt."""
        none = (0,) * NUM_STAGES
        prefill = [p.prefill_dropped if p is not None else none for p in plans]
        decode = [p.decode_dropped if p is not None else none for p in plans]
        by_stage = list(zip(*decode, strict=True))
        begun = [
            p.prompt_tokens if p is not None and name not in hits else 0
            for name, p in zip(request_ids, plans, strict=True)
        ]
        return cls(
            tuple(request_ids),
            tuple(plans),
            np.array(begun, dtype=np.int32),
            np.array([p.decode_from if p is not None else 0 for p in plans], dtype=np.int32),
            np.array(prefill, dtype=np.int32).T.copy(),
            np.array(by_stage, dtype=np.int32),
            bool(hits) or any(p is not None and p.evict_after > 1 for p in plans),
            tuple(by_stage.index(dropped) for dropped in by_stage),
        )


@dataclass(frozen=True)
class BatchGeometry:
    """One step: rows of each request and the cache position of the first one, by stage.

    `staged` are the METok prompts in it, if any. `decodes`: every request past its prompt's last
    chunk sees what decoding holds.
    """

    query_SR: Ints
    start_SR: Ints
    staged: StagedStep | None
    decodes: bool

    @classmethod
    def of(
        cls,
        batch: BatchPlans,
        computed_R: Ints,
        scheduled_R: Ints,
        buffer_rows: Mapping[str, int],
    ) -> BatchGeometry:
        """From the tokens computed before and scheduled in this step, in the batch's order.

        `buffer_rows` are the first rows of prompts in the prefill buffer.
        """
        prefilling_R = computed_R < batch.prompt_R
        dropped_SR, decodes = batch.decode_dropped_SR, True
        if batch.waits:
            early_R = ~prefilling_R & (computed_R < batch.decode_from_R)
            decodes = not early_R.any()
            if not decodes:
                dropped_SR = np.where(early_R, batch.prefill_dropped_SR, dropped_SR)
        start_SR = computed_R - np.where(prefilling_R, 0, dropped_SR)
        if not prefilling_R.any():
            return cls(np.broadcast_to(scheduled_R, start_SR.shape), start_SR, None, decodes)
        ends_R = computed_R + scheduled_R == batch.prompt_R
        whole_SR = np.where(ends_R, batch.prompt_R - batch.prefill_dropped_SR, 0)
        query_SR = np.where(prefilling_R, whole_SR, scheduled_R).astype(np.int32)
        first_SR = query_SR.cumsum(1) - query_SR
        batch_row_R = scheduled_R.cumsum() - scheduled_R
        prompts = []
        for r in np.flatnonzero(prefilling_R):
            plan, request_id = batch.plans[r], batch.request_ids[r]
            assert plan is not None
            prompts.append(
                StagedPrompt(
                    request_id,
                    plan,
                    computed=int(computed_R[r]),
                    batch_row=int(batch_row_R[r]),
                    scheduled=int(scheduled_R[r]),
                    first_row=tuple(first_SR[:, r].tolist()),
                    rows=tuple(query_SR[:, r].tolist()),
                    buffer_row=buffer_rows.get(request_id),
                )
            )
        staged = StagedStep(tuple(prompts), int(scheduled_R.sum()), tuple(query_SR.sum(1).tolist()))
        start_SR[1:, prefilling_R] = 0
        query_SR[0], start_SR[0] = scheduled_R, computed_R
        return cls(query_SR, start_SR, staged, decodes)

    def blocks(self, stage: int, most_rows: int) -> list[tuple[Ints, Ints]]:
        """Rows and first cache positions of each request, in blocks of at most `most_rows` rows."""
        query_R, start_R = self.query_SR[stage], self.start_SR[stage]
        rows = int(query_R.sum())
        if rows <= most_rows:
            return [(query_R, start_R)]
        first_R = query_R.cumsum() - query_R
        found = []
        for begin in range(0, rows, most_rows):
            low_R = np.clip(begin - first_R, 0, query_R)
            high_R = np.clip(begin + most_rows - first_R, 0, query_R)
            found.append(((high_R - low_R).astype(np.int32), (start_R + low_R).astype(np.int32)))
        return found
