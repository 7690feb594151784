"""The query as windows of token ids for the alignment text tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_WINDOWS = 16
UNSET_LENGTH = 1 << 20  # tokenizers without a limit report about 1e30


def encode_query(
    tokenizer: Any, text: str, max_windows: int = MAX_WINDOWS, length: int | None = None
) -> Tensor:
    """Token ids of `text`, int64 [W, L], each window with special tokens and padding.

    L is the tower's window (`length`, else the tokenizer's `model_max_length`). Text beyond
    `max_windows` windows is dropped. An empty text gives W = 0. Raises ValueError where no window
    length is known.
    """
    length = min(length or UNSET_LENGTH, int(tokenizer.model_max_length))
    if length >= UNSET_LENGTH:
        raise ValueError(
            "the alignment tokenizer names no model_max_length: pass the window length"
        )
    if not text.strip():
        return torch.empty(0, length, dtype=torch.int64)
    plain = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    before, after = _special_tokens(tokenizer)
    capacity = length - len(before) - len(after)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    rows = []
    for start in range(0, max(len(plain), 1), capacity):
        ids = [*before, *plain[start : start + capacity], *after]
        rows.append(ids + [pad] * (length - len(ids)))
    return torch.tensor(rows[:max_windows], dtype=torch.int64)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer adds before and after a text."""
    framed = list(tokenizer("a")["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []
