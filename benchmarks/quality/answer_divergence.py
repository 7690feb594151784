"""How far the first token's distribution moved: KL(dense || setting) over dense's likeliest tokens.

All other tokens are one bucket. Merging tokens never raises a divergence, so the figure is a lower
bound of the whole one; where dense is nearly sure, which short answers are, the two are near.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

LEAST_REST = 1e-9  # probabilities arrive in single precision: a smaller rest is rounding


def first_token_kl(dense: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Nats, 0 or more. Both map token ids to natural logarithms of probabilities.

    A token that `other` does not name counts as likely as the least likely that it names, which
    is the most it can be. Raises ValueError where either is empty.
    """
    if not dense or not other:
        raise ValueError("a distribution without tokens has no divergence")
    least = min(other.values())
    named = {token: other.get(token, least) for token in dense}
    total = sum(math.exp(log_p) * (log_p - named[token]) for token, log_p in dense.items())
    rest_p = 1.0 - sum(math.exp(log_p) for log_p in dense.values())
    told = sum(math.exp(other[token]) for token in dense if token in other)
    rest_p, rest_q = max(rest_p, 0.0), max(1.0 - told, LEAST_REST)
    if rest_p > LEAST_REST:
        total += rest_p * math.log(rest_p / rest_q)
    return max(total, 0.0)
