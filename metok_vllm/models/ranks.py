"""Tensor parallel ranks must select alike, so what they select by is made the same."""

from __future__ import annotations

from torch import Tensor
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)


def mean_over_ranks(scores: Tensor) -> Tensor:
    """The mean over tensor parallel ranks, each of which has as many heads."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return scores
    summed: Tensor = tensor_model_parallel_all_reduce(scores)
    return summed.div(ranks)
