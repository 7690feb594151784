"""Attention of a video and many questions about it, with a mask for the questions alone.

The video's rows are plainly causal, and many: without a mask their attention costs half as much on
a CPU, and a step of training two thirds.

Shape suffixes: B videos, H heads, N rows, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import repeat_kv

NAME = "video_then_questions"


def video_then_questions(
    module: nn.Module,
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    attention_mask: Tensor,
    scaling: float,
    video_rows: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Output [B, N, H, D]. `attention_mask` bool [1, 1, N, N]: True may look; `video_rows` come
    first. The signature is that of `transformers`' attention functions."""
    groups = module.num_key_value_groups
    assert isinstance(groups, int)
    key, value = repeat_kv(key_BHND, groups), repeat_kv(value_BHND, groups)
    n = video_rows
    video = F.scaled_dot_product_attention(
        query_BHND[:, :, :n], key[:, :, :n], value[:, :, :n], is_causal=True, scale=scaling
    )
    questions = F.scaled_dot_product_attention(
        query_BHND[:, :, n:], key, value, attn_mask=attention_mask[:, :, n:], scale=scaling
    )
    return torch.cat([video, questions], 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, video_then_questions)
