"""A Hugging Face decoder run layer by layer on the rows that are left of a prompt.

The model's own layers do the work; only their attention function is replaced by one that hands out
the rotated queries and keys and that takes keys and values of rows that ran before.

Shape suffixes: M rows, D hidden, H query heads, G KV heads, V vocabulary, 1 a batch of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.errors import ConfigError
from metok_vllm.kernels.attention_mass import attention_mass

ATTENTION = "metok_calibration"


@dataclass(frozen=True)
class Seen:
    """Rotated queries and keys, and values, of a layer's own rows: [1, heads, M, head size]."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    def mass(self, query_rows: int) -> Tensor:
        """Stage 2's score: mean attention of the last rows over all rows, float32 [M]."""
        q_MHD = self.query[0].transpose(0, 1)[-query_rows:].contiguous()
        k_MGD = self.key[0].transpose(0, 1).contiguous()
        return attention_mass(q_MHD, k_MGD, [query_rows], [len(k_MGD)], self.scale)

    def rows(self, kept_M: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows; None for all."""
        if kept_M is None:
            return self.key, self.value
        return self.key[:, :, kept_M], self.value[:, :, kept_M]

    def without_queries(self) -> Seen:
        """What is worth keeping of every layer at once."""
        return replace(self, query=self.query[:, :, :0])


@dataclass
class Attention:
    """One call of a layer's attention: what it sees beside its own rows, and what it was given.

    `before` are keys and values [1, G, M, head size] that every row sees.
    """

    before: tuple[Tensor, Tensor] | None = None
    seen: Seen | None = None


class Decoder:
    """The layers, last norm and head of a loaded video model with a Qwen2-like decoder.

    Raises ConfigError for a decoder whose layers do not all see the whole prompt.
    """

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        self.model = model.model.language_model
        self.head = model.lm_head
        self.config = self.model.config
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(
                f"metok calibrate needs layers that see the whole prompt, got {sorted(kinds)}",
                "model",
            )
        AttentionInterface.register(ATTENTION, _attend)
        self.model.set_attn_implementation(ATTENTION)
        self.num_layers: int = len(self.model.layers)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device  # type: ignore[no-any-return]

    def embed(self, ids: list[int]) -> Tensor:
        """Rows of the embedding table, [M, D]."""
        ids_M = torch.tensor(ids, dtype=torch.int64, device=self.device)
        return self.model.embed_tokens(ids_M)  # type: ignore[no-any-return]

    def angles(self, hidden_MD: Tensor, position_M: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary embedding of rows at these positions of the prompt."""
        cos, sin = self.model.rotary_emb(hidden_MD[None], position_M[None])
        return cos, sin

    def layer(
        self,
        number: int,
        hidden_MD: Tensor,
        angles: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Seen]:
        """One layer, causal among the rows; `before` is seen by all of them."""
        call = Attention(before)
        out = self.model.layers[number](
            hidden_MD[None], attention_mask=None, position_embeddings=angles, metok_call=call
        )
        out_1MD = out[0] if isinstance(out, tuple) else out
        assert call.seen is not None
        return out_1MD[0], call.seen

    def logprobs(self, hidden_MD: Tensor) -> Tensor:
        """Log-probabilities of the token after each row, float32 [M, V]."""
        return torch.log_softmax(self.head(self.model.norm(hidden_MD)).float(), dim=-1)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    metok_call: Attention,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' `AttentionInterface` wants it: [1, M, H, head size]."""
    assert attention_mask is None, "rows are chosen by leaving the others out"
    metok_call.seen = Seen(query, key, value, scaling)
    mask_MM = None
    if metok_call.before is not None:
        earlier, rows = metok_call.before[0].shape[2], query.shape[2]
        key = torch.cat([metok_call.before[0], key], dim=2)
        value = torch.cat([metok_call.before[1], value], dim=2)
        mask_MM = torch.ones(rows, earlier + rows, dtype=torch.bool, device=query.device)
        mask_MM = mask_MM.tril(earlier)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, mask_MM, is_causal=mask_MM is None, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None
