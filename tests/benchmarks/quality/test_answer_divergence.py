"""The divergence of first tokens: against a plain sum, and never above the whole one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.benchmarks.quality.harness import first_token_kl

Shares = list[float]
VOCABULARY = 8


@st.composite
def distributions(draw: st.DrawFn) -> Shares:
    weights = draw(st.lists(st.floats(0.001, 1), min_size=VOCABULARY, max_size=VOCABULARY))
    return [weight / sum(weights) for weight in weights]


def kl(p: Shares, q: Shares) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def likeliest(p: Shares, count: int) -> list[int]:
    return sorted(range(len(p)), key=lambda token: -p[token])[:count]


def logs(p: Shares, tokens: list[int]) -> dict[int, float]:
    return {token: math.log(p[token]) for token in tokens}


@given(p=distributions(), q=distributions(), count=st.integers(1, VOCABULARY))
def test_named_tokens_and_one_bucket(p: Shares, q: Shares, count: int) -> None:
    tokens = likeliest(p, count)
    rest = [token for token in range(VOCABULARY) if token not in tokens]
    merged = [[*(s[t] for t in tokens), sum(s[t] for t in rest)] for s in (p, q)]
    if not rest:
        merged = [s[:-1] for s in merged]
    found = first_token_kl(logs(p, tokens), logs(q, tokens))
    assert found == pytest.approx(kl(*merged), abs=1e-6)
    assert found <= kl(p, q) + 1e-6


@given(p=distributions(), q=distributions(), count=st.integers(1, VOCABULARY))
def test_tokens_that_are_not_named_never_raise_it(p: Shares, q: Shares, count: int) -> None:
    found = first_token_kl(logs(p, likeliest(p, count)), logs(q, likeliest(q, count)))
    assert -1e-12 <= found <= kl(p, q) + 1e-6


def test_equal_distributions_do_not_diverge() -> None:
    told = {3: math.log(0.7), 4: math.log(0.2)}
    assert first_token_kl(told, told) == 0


def test_another_word_altogether_is_seen() -> None:
    """The likeliest token of one is not among those that the other names."""
    assert first_token_kl({1: math.log(0.99)}, {2: math.log(0.99), 3: math.log(0.001)}) > 2


def test_a_probability_of_nothing_is_finite() -> None:
    assert math.isfinite(first_token_kl({1: math.log(0.5)}, {1: -9999.0}))
    with pytest.raises(ValueError, match="without tokens"):
        first_token_kl({}, {1: 0.0})
