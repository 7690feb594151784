"""The decoder of a step that prefills METok prompts: layers in stages, fewer rows at each.

One loop that the model files share. Before each boundary, the attention of the text over the visual
tokens is computed from the last layer's queries and keys. The next stage runs on the rows that are
kept. Stages with evicted prompts write the kept keys and values again, to the front of their slots,
with the attention backend's own cache write, so no cache layout is assumed.
Source: METok, arXiv 2506.02850, sections 3.2 and 3.3.

Shape suffixes: N rows of the step, M rows of a stage, D hidden, H query heads, G KV heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metok_vllm.kernels.attention_mass import attention_mass
from metok_vllm.kernels.gather_rows import gather_rows
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.step import StagedPrompt, StagedStep
from metok_vllm.pruning import Selection, TokenEvents

Saved = dict[int, list[tuple[Tensor, Tensor]]]  # by layer: keys and values, chunk after chunk


@dataclass(frozen=True)
class StagedInput:
    """A step with the cache slots of its evicted prompts after eviction.

    `slots[stage][i][group]` are the slots of the i-th evicted prompt from its first visual token
    on, in the given cache group of the stage; `group_of_layer` is the cache group of each layer.
    """

    step: StagedStep
    slots: Sequence[Sequence[Mapping[int, Tensor]]]
    group_of_layer: Sequence[int]


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
        self.saved: dict[str, Saved] = {}

    def forget(self, request_id: str) -> None:
        """Drop the saved rows of a prompt's earlier chunks; it ended or starts again."""
        self.saved.pop(request_id, None)

    def __call__(self, given: StagedInput, positions: Tensor, hidden_ND: Tensor) -> Tensor:
        """Hidden states [N, D] in the batch's order; rows that were pruned are zero."""
        step, starts = given.step, self.layout.starts
        watch = Stopwatch(hidden_ND.device)
        with watch.lap():
            selection = Selection(step, self.events_of, hidden_ND.device)
        selecting = step.selecting()
        rows = step.num_rows[0]
        at, residual_MD = positions[..., :rows], None
        h_MD: Tensor = hidden_ND[:rows]
        origin_M: Tensor | None = None
        scores: list[Tensor] = []
        for stage in range(NUM_STAGES):
            with watch.lap():
                if scores:
                    selection.set_scores(scores, stage)
                index_M = selection.enter(stage) if stage else None
                if index_M is not None:
                    h_MD, residual_MD, origin_M = gather_rows(index_M, h_MD, residual_MD, origin_M)
                    origin_M = index_M if origin_M is None else origin_M
                    at = at.index_select(-1, index_M)
            last = starts[stage + 1] - 1
            scores = []
            evictor = _Evictor(self, given, selection, stage) if stage else None
            for number in range(starts[stage], starts[stage + 1]):
                layer = self.layers[number]
                with capture_qkv(self.attention_of(layer)) as captured:
                    h_MD, residual_MD = layer(at, h_MD, residual_MD)
                q_MHD, k_MGD, v_MGD = captured
                if evictor is not None:
                    evictor.write(number, self.attention_of(layer), k_MGD, v_MGD)
                if number == last and selecting and stage < NUM_STAGES - 2:
                    scale = self.attention_of(layer).impl.scale
                    with watch.lap():
                        scores = self._score(selecting, stage, q_MHD, k_MGD, scale)
        for prompt in step.evicted():
            self.forget(prompt.request_id)
        h_MD, _ = self.norm(h_MD, residual_MD)
        if origin_M is not None or rows < len(hidden_ND):
            if origin_M is None:
                origin_M = torch.arange(rows, device=h_MD.device)
            h_MD = torch.zeros_like(hidden_ND).index_copy_(0, origin_M, h_MD)
        watch.stop()
        if selecting:
            self.record([video.key for p in selecting for video in p.plan.videos], watch)
        return h_MD

    def _score(
        self,
        prompts: Sequence[StagedPrompt],
        stage: int,
        q_MHD: Tensor,
        k_MGD: Tensor,
        scale: float,
    ) -> list[Tensor]:
        """Mean attention of each prompt's last rows over all its rows, one vector per prompt."""
        keys, queries = [], []
        for prompt in prompts:
            end = prompt.first_row[stage] + prompt.rows[stage]
            keys.append(slice(prompt.first_row[stage], end))
            queries.append(slice(end - prompt.plan.query_rows, end))
        lengths = [prompt.rows[stage] for prompt in prompts]
        mass = attention_mass(
            torch.cat([q_MHD[rows] for rows in queries]),
            torch.cat([k_MGD[rows] for rows in keys]),
            [prompt.plan.query_rows for prompt in prompts],
            lengths,
            scale,
        )
        return list(self.mean_over_ranks(mass).split(lengths))


class _Evictor:
    """Writes the kept keys and values of one stage's layers to the front of their slots."""

    def __init__(
        self, decoder: StagedDecoder, given: StagedInput, selection: Selection, stage: int
    ) -> None:
        self.decoder = decoder
        self.given = given
        self.stage = stage
        step, device = given.step, selection.device
        self.prompts = step.evicted()
        # Slots of text that earlier chunks computed come first.
        self.num_saved = [self._text_before(prompt) for prompt in self.prompts]
        self.rows = _indices([part for p in self.prompts for part in p.text_rows(stage)], device)
        visual = selection.kept_for_decode(stage) if self.prompts else None
        if visual is not None:
            both = visual if self.rows is None else torch.cat([self.rows, visual])
            self.rows = both.sort().values
        self.chunks = [
            (prompt, rows)
            for prompt in step.saved()
            if (rows := _indices(prompt.text_rows(stage), device)) is not None
        ]
        self.slots: dict[int, Tensor] = {}

    def _text_before(self, prompt: StagedPrompt) -> int:
        videos = prompt.plan.videos
        ends = [video.start for video in videos[1:]] + [prompt.plan.prompt_tokens]
        return sum(
            max(0, min(end, prompt.computed) - (video.start + video.tokens))
            for video, end in zip(videos, ends, strict=True)
        )

    def write(self, number: int, attention: Any, k_MGD: Tensor, v_MGD: Tensor) -> None:
        """After layer `number` ran: write its kept rows, save the text for later chunks."""
        for prompt, rows in self.chunks:
            saved = self.decoder.saved.setdefault(prompt.request_id, defaultdict(list))
            saved[number].append((k_MGD[rows], v_MGD[rows]))
        group = self.given.group_of_layer[number]
        for prompt, num_saved, slots in self._with_saved(group):
            chunks = self.decoder.saved[prompt.request_id][number]
            keys = torch.cat([k for k, _ in chunks])
            values = torch.cat([v for _, v in chunks])
            _write_cache(attention, keys, values, slots[:num_saved])
        if self.rows is not None:
            _write_cache(attention, k_MGD[self.rows], v_MGD[self.rows], self._slots(group))

    def _with_saved(self, group: int) -> Iterator[tuple[StagedPrompt, int, Tensor]]:
        slots = self.given.slots[self.stage]
        for prompt, num_saved, by_group in zip(self.prompts, self.num_saved, slots, strict=True):
            if num_saved:
                yield prompt, num_saved, by_group[group]

    def _slots(self, group: int) -> Tensor:
        if group not in self.slots:
            parts = zip(self.num_saved, self.given.slots[self.stage], strict=True)
            self.slots[group] = torch.cat([by_group[group][skip:] for skip, by_group in parts])
        return self.slots[group]


def _indices(ranges: Sequence[range], device: torch.device) -> Tensor | None:
    parts = [torch.arange(part.start, part.stop, device=device) for part in ranges]
    return torch.cat(parts) if parts else None


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


def _write_cache(attention: Any, k_MGD: Tensor, v_MGD: Tensor, slots_M: Tensor) -> None:
    # vLLM's CPU cache write reads past the end when there are fewer slots than rows.
    assert len(k_MGD) == len(slots_M), (len(k_MGD), len(slots_M))
    attention.impl.do_kv_cache_update(attention, k_MGD, v_MGD, attention.kv_cache, slots_M)
