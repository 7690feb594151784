"""Rows of prompts that are prefilled in chunks, kept between stage 0 and the last chunk.

Source: METok, arXiv 2506.02850, section 3.2: selection needs the question, which comes last, but
the layers before the first boundary do not depend on it. So each chunk runs through stage 0 alone,
and its rows wait here for the other stages.

Shape suffixes: B rows of the buffer, N rows of the step, M joined rows, D hidden, H query heads,
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

    `residual_MD` None: no residual yet. `key_MGD` are the keys of the last layer that ran.
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
            asking = self._asking(prompt)
            if len(asking):
                self.queries[prompt.request_id].append(q_NHD[asking.start : asking.stop].clone())

    def join(self, step: StagedStep, rows: StageRows, outside: int) -> StageRows:
        """Rows of other requests and of whole prompts, in the batch's order.

        Rows from the buffer have `outside` as their place in the batch.
        """
        assert rows.residual_MD is not None
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for prompt, span in step.joined():
            where = slice(span.start, span.stop)
            if prompt is None:
                position, hidden = rows.position_M[..., where], rows.hidden_MD[where]
                residual = rows.residual_MD[where]
                origin = torch.arange(span.start, span.stop, device=hidden.device)
            else:
                assert self.position_B is not None
                position, hidden = self.position_B[..., where], self.hidden_BD[where]
                residual = torch.zeros_like(hidden)
                origin = torch.full((len(span),), outside, device=hidden.device)
            for name, part in zip(NAMES, (position, hidden, residual, origin), strict=True):
                parts[name].append(part)
        if not parts:
            none = slice(0, 0)
            return StageRows(
                rows.position_M[..., none],
                rows.hidden_MD[none],
                rows.residual_MD[none],
                torch.empty(0, dtype=torch.int64, device=rows.hidden_MD.device),
            )
        return StageRows(
            torch.cat(parts["position"], dim=-1),
            torch.cat(parts["hidden"]),
            torch.cat(parts["residual"]),
            torch.cat(parts["origin"]),
        )

    def keys(self, prompt: StagedPrompt, k_NGD: Tensor) -> Tensor:
        """Keys [prompt tokens, G, D] of a prompt that ends in this step."""
        present = k_NGD[prompt.batch_row : prompt.batch_row + prompt.scheduled]
        if not prompt.computed:
            return present
        assert prompt.buffer_row is not None
        first = prompt.buffer_row
        return torch.cat([self.key_BGD[first : first + prompt.computed], present])

    def scoring_queries(self, prompt: StagedPrompt, q_NHD: Tensor) -> Tensor:
        """Queries [query rows, H, D] of the rows that score a prompt's visual tokens."""
        asking = self._asking(prompt)
        present = q_NHD[asking.start : asking.stop]
        return torch.cat([*self.queries.pop(prompt.request_id, ()), present])

    @staticmethod
    def _asking(prompt: StagedPrompt) -> range:
        scoring = prompt.scoring
        first = prompt.batch_row
        return range(first + scoring.start, first + scoring.stop)


NAMES = ("position", "hidden", "residual", "origin")
