"""Records of prompts on vLLM's own pool of blocks: which is found, and which is dropped first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.block_pool import BlockPool

from metok_vllm.engine.kv_cache.records import MOST_OF_A_CORE, CorePrompt, Item, PrefixRecords

CORE = 10


def prompt(rest: Sequence[int], *items: Item, key: str = "a") -> CorePrompt:
    return CorePrompt(key.encode().ljust(32), CORE, np.array(rest, dtype=np.int64), items)


class Books:
    """Records of prompts with one cache group, whose requests have ended."""

    def __init__(self, most: int = 100) -> None:
        self.pool = BlockPool(64, enable_caching=True, hash_block_size=4)
        self.records = PrefixRecords(self.pool, most)

    def keep(self, of: CorePrompt, shared: Sequence[Any] = (), new: int = 1) -> list[Any]:
        """Record a prompt with blocks of another one and new ones, then free them."""
        self.pool.touch(shared)
        blocks = [*shared, *self.pool.get_new_blocks(new)]
        self.records.keep(of, [blocks])
        self.pool.free_blocks(reversed(blocks))
        return blocks


def test_the_most_tokens_in_common_and_one_left_to_run() -> None:
    books = Books()
    books.keep(prompt([1, 2, 3]))
    longer = books.keep(prompt([1, 2, 3, 4, 5]), new=2)
    for rest, tokens in (([1, 2, 9, 4], 12), ([1, 2, 3, 4, 9], 14), ([1, 2, 3, 4, 5], 14)):
        found = books.records.find(prompt(rest))
        assert found is not None
        assert found[1] == tokens
        assert found[0].blocks == (tuple(longer),)
    assert books.records.find(prompt([1], key="b")) is None


def test_an_image_of_the_rest_is_more_than_its_tokens() -> None:
    """Placeholders of two images are the same tokens."""
    books = Books()
    books.keep(prompt([1, 7, 7, 2], (11, 2, "cat")))
    for items, tokens in (((11, 2, "cat"),), 13), (((11, 2, "dog"),), 11), ((), 11):
        found = books.records.find(prompt([1, 7, 7, 2], *items))
        assert found is not None
        assert found[1] == tokens


def test_a_block_that_is_given_away_ends_its_record() -> None:
    books = Books()
    (first,) = books.keep(prompt([1]))
    assert books.records.find(prompt([1])) is not None
    while first.ref_cnt == 0:
        books.pool.get_new_blocks(1)
    assert books.records.find(prompt([1])) is None
    assert not len(books.records)


def test_a_mark_is_one_record_s_alone() -> None:
    """An equal mark on the block later would be another prompt's."""
    books = Books()
    (block,) = books.keep(prompt([1]))
    mark = bytes(bytearray(block.block_hash))
    block.reset_hash()
    block.set_block_hash(mark, 11)
    assert books.records.find(prompt([1])) is None


def test_what_another_record_names_stays_marked() -> None:
    """Of a lost record, its own blocks are the first to be given away."""
    books = Books()
    head, tail = books.keep(prompt([1]), new=2)
    _, new = books.keep(prompt([1, 2, 3]), shared=[head])
    tail.reset_hash()
    found = books.records.find(prompt([1, 2, 3]))
    assert found is not None
    assert found[0].blocks == ((head, new),)
    assert len(books.records) == 1
    new.reset_hash()
    assert books.records.find(prompt([1, 2, 3])) is None
    assert head.block_hash is None
    assert books.pool.get_new_blocks(1) == [head]


@pytest.mark.parametrize("most", [3, 100])
def test_the_least_recently_used_goes_first(most: int) -> None:
    books = Books(most)
    for number in range(MOST_OF_A_CORE + 2):
        books.keep(prompt([number, 5]))
        books.records.find(prompt([0, 5, 5]))
    bound = min(most, MOST_OF_A_CORE)
    rests = [int(record.prompt.rest[0]) for record in books.records]
    assert len(rests) == bound
    assert rests[-1] == 0, "the one that was used"
    books.keep(prompt([1], key="b"))
    keys = [record.prompt.key[:1] for record in books.records]
    assert keys.count(b"b") == 1
    assert len(keys) == min(most, bound + 1)


def test_a_prompt_is_recorded_once() -> None:
    books = Books()
    first = books.keep(prompt([1, 2]))
    again = books.keep(prompt([1, 2]))
    assert len(books.records) == 1
    assert first[0].block_hash is not None
    assert again[0].block_hash is None
