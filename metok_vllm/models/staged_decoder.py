"""The decoder of a step that prefills METok prompts: layers in stages, fewer rows at each.

One loop that the model files share. Before each boundary, the attention of the text over the visual
tokens is computed from the last layer's queries and keys. The next stage runs on the rows that are
kept. Stages with evicted prompts write the kept keys and values again, to the front of their slots,
with the attention backend's own cache write, so no cache layout is assumed.
Source: METok, arXiv 2506.02850, sections 3.2 and 3.3.

Shape suffixes: N rows of the step, M rows of a stage, D hidden, H query heads, G KV heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metok_vllm.kernels.attention_mass import attention_mass
from metok_vllm.kernels.gather_rows import gather_rows
from metok_vllm.models.cache_writer import KeptRowsWriter, RowBlock, StagedInput
from metok_vllm.models.prefill_buffer import PrefillBuffer, StageRows
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.pruning import Selection, TokenEvents


class StagedDecoder:
    """Runs a decoder's layers (`layer(positions, hidden, residual)`) and final norm in stages.

    `attention_of` returns a layer's attention, `events_of` the events of a video by its key.
    `mean_over_ranks` makes scores equal under tensor parallelism. `record` gets the keys of the
    videos that a step pruned and its stopwatch, whose laps are stage 2's scoring and selecting.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        layout: StageLayout,
        attention_of: Callable[[nn.Module], Any],
        events_of: Callable[[str], TokenEvents | None],
        mean_over_ranks: Callable[[Tensor], Tensor],
        record: Callable[[Sequence[str], Stopwatch], None],
    ) -> None:
        self.layers = layers
        self.norm = norm
        self.layout = layout
        self.attention_of = attention_of
        self.events_of = events_of
        self.mean_over_ranks = mean_over_ranks
        self.record = record
        self.buffer = PrefillBuffer(0, 0, (0, 0), torch.float32, torch.device("cpu"))

    def allocate_buffer(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate the prefill buffer, before vLLM sizes its KV cache."""
        last = self.attention_of(self.layers[self.layout.starts[1] - 1])
        key_shape = last.num_kv_heads, last.head_size
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        self.buffer = PrefillBuffer(num_rows, len(weight), key_shape, dtype, device)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a prompt's earlier chunks; it ended or starts again."""
        self.buffer.forget(request_id)

    def __call__(
        self,
        given: StagedInput,
        positions: Tensor,
        hidden_ND: Tensor,
        added: Sequence[Tensor] = (),
    ) -> Tensor:
        """Hidden states [N, D] in the batch's order; rows that were pruned are zero.

        `added[k]` [N, D] is added after layer k, which is in stage 0 (Qwen3-VL's deepstack).
        """
        step = given.step
        assert len(added) <= self.layout.starts[1]
        watch = Stopwatch(hidden_ND.device)
        with watch.lap():
            selection = Selection(step, self.events_of, hidden_ND.device)
        batch = slice(0, step.batch_rows)
        rows = StageRows(positions[..., batch], hidden_ND[batch], None, None)
        rows, q_NHD, k_NGD = self._run(given, 0, rows, None, added)
        selecting = step.selecting()
        scores: list[Tensor] = []
        if selecting:
            queries = [self.buffer.scoring_queries(p, q_NHD) for p in selecting]
            keys = [self.buffer.keys(p, k_NGD) for p in selecting]
            with watch.lap():
                scores = self._score(0, queries, keys)
        if step.joins:
            assert rows.residual_MD is not None
            if step.chunks():
                hidden = rows.hidden_MD + rows.residual_MD
                self.buffer.save(step, rows.position_M, hidden, q_NHD, k_NGD)
            rows = self.buffer.join(step, rows, outside=len(hidden_ND))
        for prompt in step.prompts:
            if prompt.ends:
                self.forget(prompt.request_id)
        for stage in range(1, NUM_STAGES if step.num_rows[1] else 1):
            with watch.lap():
                if scores:
                    selection.set_scores(scores, stage)
                rows = self._enter(selection, stage, rows)
            evictor = KeptRowsWriter(given, selection, stage)
            rows, q_MHD, k_MGD = self._run(given, stage, rows, evictor)
            scores = []
            if selecting and stage < NUM_STAGES - 2:
                at = [p.scoring_at(stage) for p in selecting]
                queries = [q_MHD[rows_at.start : rows_at.stop] for rows_at in at]
                keys = [
                    k_MGD[p.first_row[stage] : rows_at.stop]
                    for p, rows_at in zip(selecting, at, strict=True)
                ]
                with watch.lap():
                    scores = self._score(stage, queries, keys)
        h_ND = self._at_origin(rows, hidden_ND)
        watch.stop()
        if selecting:
            self.record([video.key for p in selecting for video in p.plan.videos], watch)
        return h_ND

    def _enter(self, selection: Selection, stage: int, rows: StageRows) -> StageRows:
        """The rows that run on in `stage`."""
        index_M = selection.enter(stage)
        if index_M is None:
            return rows
        hidden, residual, origin = gather_rows(
            index_M, rows.hidden_MD, rows.residual_MD, rows.origin_M
        )
        origin = index_M if origin is None else origin
        return StageRows(rows.position_M.index_select(-1, index_M), hidden, residual, origin)

    def _run(
        self,
        given: StagedInput,
        stage: int,
        rows: StageRows,
        evictor: KeptRowsWriter | None,
        added: Sequence[Tensor] = (),
    ) -> tuple[StageRows, Tensor, Tensor]:
        """Rows after a stage's layers, with queries and keys of its last layer."""
        blocks = given.blocks[stage]
        if not blocks:
            hidden, residual, q, k = self._run_block(stage, rows, slice(None), evictor, added)
            return StageRows(rows.position_M, hidden, residual, rows.origin_M), q, k
        assert rows.residual_MD is not None
        queries, keys = [], []
        for block in blocks:
            where = slice(block.rows.start, block.rows.stop)
            with _attention_context(block):
                hidden, residual, q, k = self._run_block(stage, rows, where, evictor)
            # In place: the next block reads other rows, and memory stays that of one copy.
            rows.hidden_MD[where] = hidden
            rows.residual_MD[where] = residual
            queries.append(q)
            keys.append(k)
        if evictor is not None:
            evictor.finish()
        return rows, torch.cat(queries), torch.cat(keys)

    def _run_block(
        self,
        stage: int,
        rows: StageRows,
        where: slice,
        evictor: KeptRowsWriter | None,
        added: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        position_M, h_MD = rows.position_M[..., where], rows.hidden_MD[where]
        residual_MD = None if rows.residual_MD is None else rows.residual_MD[where]
        for number in range(self.layout.starts[stage], self.layout.starts[stage + 1]):
            layer = self.layers[number]
            with capture_qkv(self.attention_of(layer)) as captured:
                h_MD, residual_MD = layer(position_M, h_MD, residual_MD)
            q_MHD, k_MGD, v_MGD = captured
            if number < len(added):
                h_MD = h_MD + added[number][: len(h_MD)]
            if evictor is not None:
                evictor.add(number, self.attention_of(layer), k_MGD, v_MGD, where.start or 0)
        assert residual_MD is not None
        return h_MD, residual_MD, q_MHD, k_MGD

    def _score(self, stage: int, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> list[Tensor]:
        """Mean attention of each prompt's scoring rows over all rows up to them, one vector per
        prompt."""
        last = self.layers[self.layout.starts[stage + 1] - 1]
        lengths = [len(key_MGD) for key_MGD in keys]
        mass = attention_mass(
            torch.cat(list(queries)),
            torch.cat(list(keys)),
            [len(query_MHD) for query_MHD in queries],
            lengths,
            self.attention_of(last).impl.scale,
        )
        return list(self.mean_over_ranks(mass).split(lengths))

    def _at_origin(self, rows: StageRows, hidden_ND: Tensor) -> Tensor:
        """The final norm's output at each row's place in the batch, zero elsewhere."""
        if not len(rows.hidden_MD):
            return torch.zeros_like(hidden_ND)
        h_MD: Tensor
        h_MD, _ = self.norm(rows.hidden_MD, rows.residual_MD)
        origin_M = rows.origin_M
        if origin_M is None:
            if len(h_MD) == len(hidden_ND):
                return h_MD
            origin_M = torch.arange(len(h_MD), device=h_MD.device)
        # One row more takes the rows of earlier chunks.
        out = hidden_ND.new_zeros((len(hidden_ND) + 1, hidden_ND.shape[1]))
        return out.index_copy_(0, origin_M, h_MD)[:-1]


@contextmanager
def capture_qkv(attention: Any) -> Iterator[list[Tensor]]:
    """The queries, keys and values that an attention layer is called with, split into heads."""
    captured: list[Tensor] = []

    def capture(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        query, key, value = args[:3]
        captured.append(query.view(-1, attention.num_heads, attention.head_size))
        captured.append(key.view(-1, attention.num_kv_heads, attention.head_size))
        captured.append(value.view(-1, attention.num_kv_heads, attention.head_size_v))

    handle = attention.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def _attention_context(block: RowBlock) -> Iterator[None]:
    """Attention layers use the metadata and slots of a row block."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    metadata, slots = context.attn_metadata, context.slot_mapping
    context.attn_metadata = {**metadata, **block.metadata}
    context.slot_mapping = {**slots, **block.slots}
    try:
        yield
    finally:
        context.attn_metadata, context.slot_mapping = metadata, slots
