"""KL divergence of next-token distributions from the dense model's: per prompt, then the mean.

KL(dense || pruned) in nats. The answer is the dense model's own, teacher-forced: if each of its
tokens is still the most likely one, greedy decoding gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metok_vllm.errors import ConfigError


@dataclass(frozen=True)
class PromptDivergence:
    """One prompt: KL and agreement at the first token and at each following one."""

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True)
class Divergence:
    """Means over prompts. `first` and `following` are KL in nats.

    `agreement` is the share of tokens that stay the most likely one, `same_answers` the share of
    prompts for which all tokens do.
    """

    first: float
    following: float
    agreement: float
    same_answers: float

    def __post_init__(self) -> None:
        # NaN would be within every budget; compare() has refused it.
        assert math.isfinite(self.first + self.following)

    @property
    def worst(self) -> float:
        """The value to compare with a budget: the larger of `first` and `following`."""
        return max(self.first, self.following)


def compare(dense_SV: Tensor, pruned_SV: Tensor) -> PromptDivergence:
    """Compare log-probabilities [S, V] of the same S tokens; KL is never negative.

    Raises ConfigError for values that are not finite.
    """
    assert dense_SV.shape == pruned_SV.shape
    check_finite(dense_SV)
    check_finite(pruned_SV)
    dense, pruned = dense_SV.double(), pruned_SV.to(dense_SV.device).double()
    kl_S = (dense.exp() * (dense - pruned)).sum(-1).clamp(min=0)
    same_S = dense.argmax(-1) == pruned.argmax(-1)
    return PromptDivergence(tuple(kl_S.tolist()), tuple(same_S.tolist()))


def check_finite(logprobs_SV: Tensor) -> None:
    """Raises ConfigError for values that overflowed."""
    if not bool(logprobs_SV.isfinite().all()):
        raise ConfigError(
            "log-probabilities of the model are not finite, as where its numbers overflow: use "
            "bfloat16 or float32 (--dtype)",
            "dtype",
        )


def mean_divergence(prompts: Sequence[PromptDivergence]) -> Divergence:
    """The mean of first tokens over prompts, and of following tokens over all such tokens."""
    assert prompts
    following = [kl for prompt in prompts for kl in prompt.kl[1:]]
    agrees = [same for prompt in prompts for same in prompt.agrees]
    return Divergence(
        first=sum(prompt.kl[0] for prompt in prompts) / len(prompts),
        following=sum(following) / len(following) if following else 0.0,
        agreement=sum(agrees) / len(agrees),
        same_answers=sum(all(prompt.agrees) for prompt in prompts) / len(prompts),
    )
