"""How far a distribution moved from the dense model's: one prompt, then a mean over prompts.

Divergence is KL(dense || pruned) in nats. The answer is the dense model's own, teacher-forced, so
an answer whose every token is still the most likely one is the answer that decoding would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from metok_vllm.errors import ConfigError


@dataclass(frozen=True)
class Moved:
    """One prompt: KL and agreement at the first token and at each following one."""

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True)
class Divergence:
    """Means over prompts. `first` and `following` are KL in nats, `agreement` the share of tokens
    that stay the most likely one, `same_answers` the share of prompts where all of them do."""

    first: float
    following: float
    agreement: float
    same_answers: float

    def __post_init__(self) -> None:
        # moved() refuses what is not: NaN would be within every budget.
        assert math.isfinite(self.first + self.following)

    @property
    def worst(self) -> float:
        """What is held against the budget: the first token or those after it."""
        return max(self.first, self.following)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def moved(dense_SV: Tensor, pruned_SV: Tensor) -> Moved:
    """Compare log-probabilities [S, V] of the same S tokens. Never negative.

    Raises ConfigError where they are not finite.
    """
    assert dense_SV.shape == pruned_SV.shape
    check_finite(dense_SV)
    check_finite(pruned_SV)
    dense, pruned = dense_SV.double(), pruned_SV.to(dense_SV.device).double()
    kl_S = (dense.exp() * (dense - pruned)).sum(-1).clamp(min=0)
    same_S = dense.argmax(-1) == pruned.argmax(-1)
    return Moved(tuple(kl_S.tolist()), tuple(same_S.tolist()))


def check_finite(logprobs_SV: Tensor) -> None:
    """Raise ConfigError for numbers that overflowed: NaN would be within every budget."""
    if not bool(logprobs_SV.isfinite().all()):
        raise ConfigError(
            "log-probabilities of the model are not finite, as where its numbers overflow: use "
            "bfloat16 or float32 (--dtype)",
            "dtype",
        )


def divergence(prompts: Sequence[Moved]) -> Divergence:
    """Means: of the first tokens over prompts, of the following ones over all such tokens."""
    assert prompts
    following = [kl for prompt in prompts for kl in prompt.kl[1:]]
    agrees = [same for prompt in prompts for same in prompt.agrees]
    return Divergence(
        first=sum(prompt.kl[0] for prompt in prompts) / len(prompts),
        following=sum(following) / len(following) if following else 0.0,
        agreement=sum(agrees) / len(agrees),
        same_answers=sum(all(prompt.agrees) for prompt in prompts) / len(prompts),
    )
