"""A worker's block tables: rows that begin with cached tokens, and rows that lose blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def begun_tokens(scheduler_output: Any) -> dict[str, int]:
    """Cached tokens of the requests that begin or resume in a step."""
    begun = {r.req_id: int(r.num_computed_tokens) for r in scheduler_output.scheduled_new_reqs}
    cached = scheduler_output.scheduled_cached_reqs
    if cached.resumed_req_ids:
        for request_id, tokens in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request_id in cached.resumed_req_ids:
                begun[request_id] = int(tokens)
    return begun


class RequestTables:
    """Cuts rows of a runner's block tables, in its batch and in its requests' states.

    `hits` are the requests that began with cached tokens.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.hits: set[str] = set()
        self._uncut: set[str] = set()  # requests whose tables will lose their head

    def begin(self, begun: Mapping[str, int]) -> None:
        """Requests get whole block tables in this step, with so many cached tokens."""
        for request_id, tokens in begun.items():
            self.forget(request_id)
            if tokens:
                self.hits.add(request_id)
            if any(self._head_blocks(request_id)):
                self._uncut.add(request_id)

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self.hits.discard(request_id)
        self._uncut.discard(request_id)

    def trim(self, trims: Mapping[str, Sequence[int]]) -> None:
        """Drop the blocks that the scheduler freed at the end, before new ones are appended."""
        for request_id, keep in trims.items():
            state = self.runner.requests.get(request_id)
            if state is None:
                continue
            batch = self.runner.input_batch
            row = batch.req_id_to_index.get(request_id)
            for gid, blocks in enumerate(keep):
                del state.block_ids[gid][blocks:]
                if row is not None:
                    batch.block_table[gid].num_blocks_per_row[row] = blocks

    def cut_heads(self) -> None:
        """Cut the head of tables whose request sees what decoding holds from this step on.

        The scheduler frees these blocks once the steps before are processed.
        """
        batch = self.runner.input_batch
        for request_id in list(self._uncut):
            row = batch.req_id_to_index.get(request_id)
            decode_from = self.runner.metok_plans[request_id].decode_from
            if row is None or batch.num_computed_tokens_cpu[row] < decode_from:
                continue
            self._uncut.remove(request_id)
            for gid, count in enumerate(self._head_blocks(request_id)):
                del self.runner.requests[request_id].block_ids[gid][:count]
                table = batch.block_table[gid]
                left = table.num_blocks_per_row[row] - count
                of_row = table.block_table.np[row]
                of_row[:left] = of_row[count : count + left].copy()
                table.num_blocks_per_row[row] = left

    def _head_blocks(self, request_id: str) -> list[int]:
        """Blocks that each cache group of a request loses at the head."""
        plan, stages = self.runner.metok_plans.get(request_id), self.runner.metok_stage_of_group
        return [plan.head_blocks[stage] if plan else 0 for stage in stages]
