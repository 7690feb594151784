"""Rows of prompts that are prefilled in chunks, kept between stage 0 and the last chunk.

Source: METok, arXiv 2506.02850, section 3.2: selection needs the question, which comes last, but
the layers before the first boundary do not depend on it. So each chunk runs through stage 0 alone,
and its rows wait here for the other stages.

Shape suffixes: B rows of the buffer, N rows of the batch, M joined rows, D hidden, H query heads,
G KV heads.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from metok_vllm.plan.step import StagedPrompt, StagedStep


@dataclass(frozen=True)
class StageRows:
    """Rows between two stages. `origin_M` is each row's place in the batch; None: the same.

    `residual_MD` None: no layer has run yet.
    """

    position_M: Tensor
    hidden_MD: Tensor
    residual_MD: Tensor | None
    origin_M: Tensor | None


class PrefillBuffer:
    """Hidden states, keys and positions of `num_rows` rows, allocated at once."""

    def __init__(
        self,
        num_rows: int,
        hidden_size: int,
        key_shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows = num_rows
        self.hidden_BD = torch.empty((num_rows, hidden_size), dtype=dtype, device=device)
        self.key_BGD = torch.empty((num_rows, *key_shape), dtype=dtype, device=device)
        self.position_B: Tensor | None = None  # [3, B] with three rotary axes
        self.queries: dict[str, list[Tensor]] = defaultdict(list)

    def forget(self, request_id: str) -> None:
        """Drop the queries of a request; its rows are the scheduler's to give away."""
        self.queries.pop(request_id, None)

    def save(
        self,
        step: StagedStep,
        position_N: Tensor,
        hidden_ND: Tensor,
        q_NHD: Tensor,
        k_NGD: Tensor,
    ) -> None:
        """Keep the rows of chunks that do not end their prompt."""
        for prompt in step.chunks():
            assert prompt.buffer_row is not None
            if self.position_B is None:
                shape = (*position_N.shape[:-1], self.num_rows)
                self.position_B = position_N.new_empty(shape)
            first = prompt.buffer_row + prompt.computed
            there = slice(first, first + prompt.scheduled)
            here = slice(prompt.batch_row, prompt.batch_row + prompt.scheduled)
            self.hidden_BD[there] = hidden_ND[here]
            self.key_BGD[there] = k_NGD[here]
            self.position_B[..., there] = position_N[..., here]
            scoring = self._scoring_rows(prompt)
            if len(scoring):
                self.queries[prompt.request_id].append(q_NHD[scoring.start : scoring.stop].clone())

    def join(self, step: StagedStep, rows: StageRows, outside: int) -> StageRows:
        """Rows of other requests and of whole prompts, in the batch's order.

        Rows from the buffer have `outside` as their place in the batch.
        """
        assert rows.residual_MD is not None
        device = rows.hidden_MD.device
        none = slice(0, 0)
        positions, hidden = [rows.position_M[..., none]], [rows.hidden_MD[none]]
        residual, origin = [rows.residual_MD[none]], [torch.arange(0, device=device)]
        for prompt, span in step.joined():
            where = slice(span.start, span.stop)
            if prompt is None:
                positions.append(rows.position_M[..., where])
                hidden.append(rows.hidden_MD[where])
                residual.append(rows.residual_MD[where])
                origin.append(torch.arange(span.start, span.stop, device=device))
            else:
                assert self.position_B is not None
                positions.append(self.position_B[..., where])
                hidden.append(self.hidden_BD[where])
                # What is kept is hidden state plus residual.
                residual.append(torch.zeros_like(self.hidden_BD[where]))
                origin.append(torch.full((len(span),), outside, device=device))
        return StageRows(
            torch.cat(positions, dim=-1),
            torch.cat(hidden),
            torch.cat(residual),
            torch.cat(origin),
        )

    def keys(self, prompt: StagedPrompt, k_NGD: Tensor) -> Tensor:
        """Keys [core tokens, G, D] of a prompt that ends in this step."""
        first, core = prompt.buffer_row, prompt.plan.core_tokens
        here = max(core - prompt.computed, 0)
        present = k_NGD[prompt.batch_row : prompt.batch_row + here]
        if not prompt.computed:
            return present
        assert first is not None
        return torch.cat([self.key_BGD[first : first + min(prompt.computed, core)], present])

    def scoring_queries(self, prompt: StagedPrompt, q_NHD: Tensor) -> Tensor:
        """Queries [query rows, H, D] of the rows that score a prompt's visual tokens."""
        scoring = self._scoring_rows(prompt)
        present = q_NHD[scoring.start : scoring.stop]
        return torch.cat([*self.queries.pop(prompt.request_id, ()), present])

    @staticmethod
    def _scoring_rows(prompt: StagedPrompt) -> range:
        scoring = prompt.scoring
        first = prompt.batch_row
        return range(first + scoring.start, first + scoring.stop)
