"""A Hugging Face decoder run layer by layer on a subset of a prompt's rows.

The model's own layers run; only their attention function is replaced. It returns the rotated
queries and keys and accepts keys and values of rows that ran earlier.

Shape suffixes: M rows, D hidden, H query heads, G KV heads, V vocabulary, X rotary axes, 1 a batch
of one.
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
class QKV:
    """Rotated queries and keys, and values, of a layer's rows: [1, heads, M, head size] each."""

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
        """Keys and values of some rows; None selects all."""
        if kept_M is None:
            return self.key, self.value
        return self.key[:, :, kept_M], self.value[:, :, kept_M]

    def without_queries(self) -> QKV:
        """Keys and values alone, which is what later rows read."""
        return replace(self, query=self.query[:, :, :0])


@dataclass
class AttentionCall:
    """One call of a layer's attention, with its captured `qkv`.

    `prefix` are keys and values [1, G, M, head size] that every row attends to.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    qkv: QKV | None = None


class Decoder:
    """The layers, last norm and head of a loaded video model with a Qwen2 or Qwen3 decoder.

    Raises ConfigError for layers without full attention.
    """

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        self.model = model.model.language_model
        self.head = model.lm_head
        self.config = self.model.config
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(
                f"metok calibrate needs layers with full attention, got {sorted(kinds)}", "model"
            )
        AttentionInterface.register(ATTENTION, _attend)
        self.model.set_attn_implementation(ATTENTION)
        self.num_layers: int = len(self.model.layers)
        self.device: torch.device = self.model.embed_tokens.weight.device

    def embed(self, ids: list[int]) -> Tensor:
        """Rows of the embedding table, [M, D]."""
        ids_M = torch.tensor(ids, dtype=torch.int64, device=self.device)
        embeds_MD: Tensor = self.model.embed_tokens(ids_M)
        return embeds_MD

    def rotary(self, hidden_MD: Tensor, position_XM: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding at these positions: one axis, or M-RoPE's."""
        of_batch = position_XM if len(position_XM) == 1 else position_XM[:, None]
        cos, sin = self.model.rotary_emb(hidden_MD[None], of_batch)
        return cos, sin

    def layer(
        self,
        number: int,
        hidden_MD: Tensor,
        rotary: tuple[Tensor, Tensor],
        prefix: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, QKV]:
        """One layer with causal attention among the rows; all rows also attend to `prefix`."""
        call = AttentionCall(prefix)
        out = self.model.layers[number](
            hidden_MD[None], attention_mask=None, position_embeddings=rotary, metok_call=call
        )
        out_1MD = out[0] if isinstance(out, tuple) else out
        assert call.qkv is not None
        return out_1MD[0], call.qkv

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
    metok_call: AttentionCall,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature of transformers' `AttentionInterface`: [1, M, H, head size]."""
    assert attention_mask is None, "rows are selected by leaving the others out"
    metok_call.qkv = QKV(query, key, value, scaling)
    mask_MM = None
    if metok_call.prefix is not None:
        earlier, rows = metok_call.prefix[0].shape[2], query.shape[2]
        key = torch.cat([metok_call.prefix[0], key], dim=2)
        value = torch.cat([metok_call.prefix[1], value], dim=2)
        mask_MM = torch.ones(rows, earlier + rows, dtype=torch.bool, device=query.device)
        mask_MM = mask_MM.tril(earlier)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, mask_MM, is_causal=mask_MM is None, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None
