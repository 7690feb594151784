"""Prompts that later prompts go on from: which blocks hold what their layers cached.

The blocks of an ended request lie in vLLM's queue of free blocks until somebody needs them. A
record names them without holding them, and marks each. vLLM wipes the mark of a block that it gives
away, and all marks when the prefix cache is reset, so a record is valid as long as its marks stand.
Source of the marks: `KVCacheBlock.block_hash`, vllm/v1/core/kv_cache_utils.py, version 0.32.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from metok_vllm.plan.prompt import PromptPlan

MOST_OF_A_CORE = 8

Item = tuple[int, int, str]  # of a prompt's media: first token, tokens, identifier


@dataclass(frozen=True)
class CorePrompt:
    """A prompt by its core: `key` names the core's `core` tokens, their media and what is kept of
    them. The rest are its token ids and its media from there on."""

    key: bytes
    core: int
    rest: npt.NDArray[np.int64]
    items: tuple[Item, ...]

    @classmethod
    def of(cls, request: Any, plan: PromptPlan) -> CorePrompt | None:
        """Of one of vLLM's requests; None where no prompt can go on from its plan's."""
        if plan.core is None:
            return None
        tokens = np.array(request.prompt_token_ids, dtype=np.int64)
        items = [
            (int(f.mm_position.offset), int(f.mm_position.length), str(f.identifier))
            for f in request.mm_features
        ]
        before = [item for item in items if item[0] < plan.core]
        lora = getattr(request.lora_request, "lora_name", None)
        counts = [video.counts for video in plan.videos]
        digest = hashlib.sha256(repr((request.cache_salt, lora, before, counts)).encode())
        digest.update(tokens[: plan.core].tobytes())
        rest = tuple(item for item in items if item[0] >= plan.core)
        return cls(digest.digest(), plan.core, tokens[plan.core :], rest)

    def common(self, other: CorePrompt) -> int:
        """Tokens that two prompts of one core have in common."""
        length = min(len(self.rest), len(other.rest))
        differs = np.flatnonzero(self.rest[:length] != other.rest[:length])
        common = self.core + (int(differs[0]) if len(differs) else length)
        for mine in self.items:
            if mine not in other.items:
                common = min(common, mine[0])
        for theirs in other.items:
            if theirs not in self.items:
                common = min(common, theirs[0])
        return common


@dataclass(frozen=True, eq=False)
class Record:
    """A prompt whose last row is processed, with its blocks and their marks by cache group."""

    prompt: CorePrompt
    blocks: tuple[Sequence[KVCacheBlock], ...]
    marks: tuple[Sequence[bytes], ...]

    def __iter__(self) -> Iterator[tuple[KVCacheBlock, bytes]]:
        """Every block with its mark."""
        for blocks, marks in zip(self.blocks, self.marks, strict=True):
            yield from zip(blocks, marks, strict=True)

    @property
    def is_valid(self) -> bool:
        """Whether its blocks still hold the prompt."""
        return all(block.block_hash is mark for block, mark in self)


class PrefixRecords:
    """At most `most` records; of a core and of all, the least recently used is dropped first."""

    def __init__(self, pool: Any, most: int) -> None:
        self.pool = pool
        self.most = most
        self._of_core: OrderedDict[bytes, list[Record]] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._of_core.values()))

    def __iter__(self) -> Iterator[Record]:
        for records in self._of_core.values():
            yield from records

    def clear(self) -> None:
        """Forget all; vLLM has wiped their marks."""
        self._of_core.clear()

    def find(self, prompt: CorePrompt) -> tuple[Record, int] | None:
        """The record with the most of a prompt's first tokens, and their number.

        The prompt's last token is left to run: it gives the first new one.
        """
        best: tuple[Record, int] | None = None
        for record in self._valid(prompt.key):
            tokens = min(record.prompt.common(prompt), prompt.core + len(prompt.rest) - 1)
            if best is None or tokens >= best[1]:
                best = record, tokens
        if best is not None:
            self._use(best[0])
        return best

    def keep(self, prompt: CorePrompt, blocks: Sequence[Sequence[KVCacheBlock]]) -> None:
        """Record a prompt with its blocks by cache group, unless it is recorded."""
        tokens = prompt.core + len(prompt.rest)
        for record in self._valid(prompt.key):
            if record.prompt.common(prompt) == tokens == prompt.core + len(record.prompt.rest):
                self._use(record)
                return
        self._number += 1
        marks = []
        for gid, of_group in enumerate(blocks):
            # A new object each time: marks are compared by identity. It ends in the group, as
            # vLLM's hashes do.
            mark = prompt.key + self._number.to_bytes(8, "big") + gid.to_bytes(4, "big")
            for block in of_group:
                if block.block_hash is None:
                    block.set_block_hash(mark, tokens)
            marks.append([block.block_hash for block in of_group])
        record = Record(prompt, tuple(map(tuple, blocks)), tuple(marks))
        self._of_core.setdefault(prompt.key, []).append(record)
        self._use(record)
        if len(self._of_core[prompt.key]) > MOST_OF_A_CORE:
            self._drop(self._of_core[prompt.key][0])
        while len(self) > self.most:
            self._drop(next(iter(self)))

    def _valid(self, key: bytes) -> list[Record]:
        """Valid records of a core; others are dropped."""
        valid = []
        for record in list(self._of_core.get(key, ())):
            if record.is_valid:
                valid.append(record)
            else:
                self._drop(record)
        return valid

    def _use(self, record: Record) -> None:
        key = record.prompt.key
        self._of_core[key].remove(record)
        self._of_core[key].append(record)
        self._of_core.move_to_end(key)

    def _drop(self, record: Record) -> None:
        """Forget a record. Blocks that no other one names are given away first."""
        key = record.prompt.key
        self._of_core[key].remove(record)
        others = {id(block) for other in self._of_core[key] for block, _ in other}
        if not self._of_core[key]:
            del self._of_core[key]
        unused = []
        for block, mark in record:
            if block.block_hash is mark and id(block) not in others:
                block.reset_hash()
                if block.ref_cnt == 0:
                    unused.append(block)
        self.pool.touch(unused)
        self.pool.free_blocks(reversed(unused))
