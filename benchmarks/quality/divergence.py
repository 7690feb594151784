"""How far a setting's first token is from dense's."""

from __future__ import annotations

import math
from collections.abc import Mapping

LEAST_REST = 1e-9  # probabilities are in single precision: a smaller rest is rounding


def first_token_kl(dense: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(dense || other) of the first token in nats, from log-probabilities by token id.

    All tokens outside `dense` are one bucket. Merging tokens never raises a divergence, so the
    result is a lower bound, which is tight for short answers. A token that `other` lacks counts
    with the least probability in `other`, its upper bound. Raises ValueError if either is empty.
    """
    if not dense or not other:
        raise ValueError("a distribution without tokens has no divergence")
    least = min(other.values())
    named = {token: other.get(token, least) for token in dense}
    total = sum(math.exp(log_p) * (log_p - named[token]) for token, log_p in dense.items())
    rest_p = 1.0 - sum(math.exp(log_p) for log_p in dense.values())
    named_q = sum(math.exp(other[token]) for token in dense if token in other)
    rest_p, rest_q = max(rest_p, 0.0), max(1.0 - named_q, LEAST_REST)
    if rest_p > LEAST_REST:
        total += rest_p * math.log(rest_p / rest_q)
    return max(total, 0.0)
