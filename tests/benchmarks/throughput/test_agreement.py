"""The agreement of two servers' answers."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.benchmarks.throughput.agreement import (
    Agreement,
    agreement,
    digest,
    recorded_agreement,
)
from tests.benchmarks.throughput.experiments import outcome


def tokens(key: str, *ids: int) -> Any:
    return outcome(key, token_ids=ids)


def text(key: str, whole: str, first: str) -> Any:
    return outcome(key, text=whole, first_piece=first)


def test_tokens_are_compared_where_there_are_tokens() -> None:
    one = [tokens("a", 1, 2, 3, 4), tokens("b", 1, 2, 3, 4), tokens("c", 5, 6, 7, 8)]
    other = [tokens("c", 0, 6, 7, 8), tokens("a", 1, 2, 3, 4), tokens("b", 1, 2, 9, 4)]
    assert agreement(one, other) == Agreement(
        compared=3, by_tokens=3, unanswered=0, exact=1 / 3, first=2 / 3, prefix=(1 + 0.5 + 0) / 3
    )


def test_texts_are_compared_where_there_are_none() -> None:
    one = [text("a", "one two", "one"), text("b", "one two", "one")]
    other = [text("a", "one two", "one two"), text("b", "two one", "two")]
    found = agreement(one, other)
    assert found is not None
    assert (found.by_tokens, found.exact, found.first, found.prefix) == (0, 0.5, 0.5, 0.5)


def test_one_side_without_tokens_is_compared_by_text() -> None:
    found = agreement([outcome(token_ids=(1,))], [outcome(token_ids=None)])
    assert found is not None
    assert (found.by_tokens, found.exact, found.first) == (0, 1, 1)


def test_a_longer_answer_is_not_the_same() -> None:
    found = agreement([tokens("a", 1, 2)], [tokens("a", 1, 2, 3, 4)])
    assert found is not None
    assert (found.exact, found.first, found.prefix) == (0, 1, 0.5)


def test_unanswered_requests_count_beside() -> None:
    one = [tokens("a", 1), outcome("b", error="429", times_s=()), tokens("c", 1)]
    found = agreement(one, [tokens("a", 1), tokens("b", 1)])
    assert found is not None
    assert (found.compared, found.unanswered) == (1, 2)


def test_nothing_to_compare() -> None:
    assert agreement([tokens("a", 1)], [tokens("b", 1)]) is None
    assert agreement([], []) is None


@pytest.mark.parametrize(("whole", "first", "same"), [("", "", True), ("one", "one", False)])
def test_the_first_token_of_an_empty_answer(whole: str, first: str, same: bool) -> None:
    found = agreement([text("a", "", "")], [text("a", whole, first)])
    assert found is not None
    assert found.first == same


def test_records_are_compared_by_hash() -> None:
    def record(key: str, text: str, error: str | None = None) -> dict[str, Any]:
        return {"key": key, "answer": digest(outcome(text=text)), "error": error}

    one = [record("a", "x"), record("b", "x"), record("c", "x"), record("d", "x", "429")]
    other = [record("a", "x"), record("b", "y"), record("d", "x"), record("e", "x")]
    assert recorded_agreement(one, other) == 0.5
    assert recorded_agreement(one, []) is None


def test_a_hash_takes_what_models_write() -> None:
    assert digest(outcome(text="\ud800")) != digest(outcome(text="\ud801"))
    assert digest(outcome(token_ids=(1, 2))) != digest(outcome(token_ids=(12,)))
