"""The agreement of two servers' answers to the same requests, which a speed-up needs.

Tokens are compared if both servers report them, else texts. Equal tokens give equal texts, but
incomplete characters of different tokens may look the same as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.client.stream import Outcome

SHORT_HASH = 16


@dataclass(frozen=True)
class Agreement:
    """Shares of the requests that both servers answered, in 0 to 1.

    `exact`: equal answers. `first`: equal first tokens. `prefix`: the mean share of the longer
    answer before the first difference. `compared` counts requests, `by_tokens` those compared by
    tokens, `unanswered` those without a pair.
    """

    compared: int
    by_tokens: int
    unanswered: int
    exact: float
    first: float
    prefix: float


def agreement(one: Iterable[Outcome], other: Iterable[Outcome]) -> Agreement | None:
    """The agreement of two servers' outcomes, paired by key; None if both answered no request.

    Repeated keys pair in order.
    """
    mine, theirs = _by_key(one), _by_key(other)
    pairs: list[tuple[Outcome, Outcome]] = []
    unanswered = 0
    for key in mine.keys() | theirs.keys():
        left, right = mine.get(key, []), theirs.get(key, [])
        unanswered += abs(len(left) - len(right))
        for a, b in zip(left, right, strict=False):
            if a.error is None and b.error is None:
                pairs.append((a, b))
            else:
                unanswered += 1
    if not pairs:
        return None
    tokens = sum(_token_pair(a, b) for a, b in pairs)
    count = len(pairs)
    return Agreement(
        compared=count,
        by_tokens=tokens,
        unanswered=unanswered,
        exact=sum(_sequences(a, b)[0] == _sequences(a, b)[1] for a, b in pairs) / count,
        first=sum(_same_first(a, b) for a, b in pairs) / count,
        prefix=sum(_common_share(*_sequences(a, b)) for a, b in pairs) / count,
    )


def digest(outcome: Outcome) -> str:
    """A short hash of an answer, which the records of later runs can be compared with."""
    answer = repr(outcome.token_ids) if outcome.token_ids is not None else outcome.text
    return hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_HASH]


def recorded_agreement(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> float | None:
    """The share of equal answers in the request records of two result files, by key.

    None if they have no answered request in common.
    """
    mine = {record["key"]: record["answer"] for record in one if record["error"] is None}
    theirs = {record["key"]: record["answer"] for record in other if record["error"] is None}
    common = mine.keys() & theirs.keys()
    return sum(mine[key] == theirs[key] for key in common) / len(common) if common else None


def _by_key(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.key, []).append(outcome)
    return found


def _token_pair(a: Outcome, b: Outcome) -> bool:
    return a.token_ids is not None and b.token_ids is not None


def _sequences(a: Outcome, b: Outcome) -> tuple[Sequence[Any], Sequence[Any]]:
    if a.token_ids is not None and b.token_ids is not None:
        return a.token_ids, b.token_ids
    return a.text, b.text


def _same_first(a: Outcome, b: Outcome) -> bool:
    left, right = _sequences(a, b)
    if _token_pair(a, b):
        return bool(left[0] == right[0])
    # A chunk may hold several tokens if the client reads late.
    length = min(len(a.first_piece), len(b.first_piece))
    return a.first_piece[:length] == b.first_piece[:length] and (length > 0 or left == right)


def _common_share(left: Sequence[Any], right: Sequence[Any]) -> float:
    longer = max(len(left), len(right))
    same = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    return same / longer if longer else 1.0
