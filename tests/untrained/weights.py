"""Random weights of a small video model, by the names of published checkpoints.

Features depend on the frame and logits on the question and the video. Activations stay in a range
where float32 runs agree closely. numpy's generator does not depend on the machine's vector width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer

from training.sizes import Sizes

State = dict[str, torch.Tensor]


class Init:
    """Collects tensors; each has its own generator, seeded by its name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.state: State = {}

    def normal(self, name: str, shape: tuple[int, ...], std: float) -> None:
        rng = np.random.Generator(np.random.PCG64([self.seed, *name.encode()]))
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
        self.state[name] = torch.from_numpy(values).to(torch.bfloat16)

    def constant(self, name: str, shape: tuple[int, ...], value: float) -> None:
        self.state[name] = torch.full(shape, value, dtype=torch.bfloat16)

    def linear(self, name: str, out: int, inp: int, std: float, bias: bool = True) -> None:
        self.normal(f"{name}.weight", (out, inp), std)
        if bias:
            self.normal(f"{name}.bias", (out,), 0.02)

    def layer_norm(self, name: str, width: int) -> None:
        self.constant(f"{name}.weight", (width,), 1.0)
        self.constant(f"{name}.bias", (width,), 0.0)


def video_model(sizes: Sizes, seed: int, tokenizer: Tokenizer) -> State:
    """LlavaOnevisionForConditionalGeneration: vision tower, projector, newline, Qwen2 decoder."""
    init = Init(seed)
    _vision(init, "vision_tower.vision_model.", sizes)
    std = 1 / math.sqrt(sizes.width)
    init.linear("multi_modal_projector.linear_1", sizes.width, sizes.width, std)
    init.linear("multi_modal_projector.linear_2", sizes.width, sizes.width, 0.5 * std)
    init.normal("image_newline", (sizes.width,), 0.08)
    _decoder(init, "language_model.", sizes)
    head = init.state["language_model.lm_head.weight"]
    # Rows of zeros are never the most likely; random ones would give placeholders and broken UTF-8.
    head[list(_unprintable(tokenizer))] = 0
    return init.state


def alignment_model(sizes: Sizes, seed: int) -> State:
    """SiglipModel whose image tower is the video model's, as LLaVA-OneVision starts from SigLIP."""
    init = Init(seed)
    _vision(init, "vision_tower.vision_model.", sizes)
    init.state = {
        name.replace("vision_tower.vision_model.", "vision_model."): tensor
        for name, tensor in init.state.items()
    }
    _pooling_head(init, "vision_model.head.", sizes)
    _text_tower(init, "text_model.", sizes)
    init.constant("logit_scale", (1,), math.log(10.0))
    init.constant("logit_bias", (1,), -10.0)
    return init.state


def _unprintable(tokenizer: Tokenizer) -> Iterable[int]:
    """Special tokens except the end of a turn, and tokens that are not printable ASCII."""
    special = set(tokenizer.get_added_tokens_decoder())
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        plain = text.isascii() and text.isprintable()
        if text != "<|im_end|>" and (token in special or not plain):
            yield token


def _decoder(init: Init, prefix: str, sizes: Sizes) -> None:
    # With 0.15 the model is chaotic, with 0.02 it hardly attends to the video. Queries and keys are
    # larger, because attention over hundreds of tokens is flat otherwise.
    std, d = 0.08, sizes.width
    kv = sizes.kv_heads * d // sizes.heads
    init.normal(f"{prefix}model.embed_tokens.weight", (sizes.vocab, d), std)
    for index in range(sizes.decoder_layers):
        layer = f"{prefix}model.layers.{index}."
        init.linear(f"{layer}self_attn.q_proj", d, d, 2.5 * std)
        init.linear(f"{layer}self_attn.k_proj", kv, d, 2.5 * std)
        init.linear(f"{layer}self_attn.v_proj", kv, d, std)
        init.linear(f"{layer}self_attn.o_proj", d, d, std, bias=False)
        init.linear(f"{layer}mlp.gate_proj", sizes.decoder_ffn, d, std, bias=False)
        init.linear(f"{layer}mlp.up_proj", sizes.decoder_ffn, d, std, bias=False)
        init.linear(f"{layer}mlp.down_proj", d, sizes.decoder_ffn, std, bias=False)
        init.constant(f"{layer}input_layernorm.weight", (d,), 1.0)
        init.constant(f"{layer}post_attention_layernorm.weight", (d,), 1.0)
    init.constant(f"{prefix}model.norm.weight", (d,), 1.0)
    init.normal(f"{prefix}lm_head.weight", (sizes.vocab, d), std)


def _vision(init: Init, prefix: str, sizes: Sizes) -> None:
    d, embeddings = sizes.width, f"{prefix}embeddings."
    # Colours have a larger weight than positions, so that scenes differ in their features.
    init.normal(f"{embeddings}patch_embedding.weight", (d, 3, sizes.patch, sizes.patch), 0.15)
    init.normal(f"{embeddings}patch_embedding.bias", (d,), 0.02)
    init.normal(f"{embeddings}position_embedding.weight", (sizes.grid**2, d), 0.2)
    for index in range(sizes.tower_layers):
        layer = f"{prefix}encoder.layers.{index}."
        _encoder_layer(init, layer, d, sizes.tower_ffn, query_key=1.5, value=0.6)
    init.layer_norm(f"{prefix}post_layernorm", d)


def _pooling_head(init: Init, prefix: str, sizes: Sizes) -> None:
    d, std = sizes.width, 1 / math.sqrt(sizes.width)
    init.normal(f"{prefix}probe", (1, 1, d), 1.0)
    init.normal(f"{prefix}attention.in_proj_weight", (3 * d, d), std)
    init.normal(f"{prefix}attention.in_proj_bias", (3 * d,), 0.02)
    init.linear(f"{prefix}attention.out_proj", d, d, std)
    init.layer_norm(f"{prefix}layernorm", d)
    init.linear(f"{prefix}mlp.fc1", sizes.tower_ffn, d, 0.6 * std)
    init.linear(f"{prefix}mlp.fc2", d, sizes.tower_ffn, 0.6 * std)


def _text_tower(init: Init, prefix: str, sizes: Sizes) -> None:
    d = sizes.width
    init.normal(f"{prefix}embeddings.token_embedding.weight", (sizes.text_vocab, d), 0.5)
    init.normal(f"{prefix}embeddings.position_embedding.weight", (sizes.text_window, d), 0.2)
    for index in range(sizes.text_layers):
        # The embedding is read at the last position, which is padding. Words reach it only through
        # attention, which is therefore strong and selective.
        layer = f"{prefix}encoder.layers.{index}."
        _encoder_layer(init, layer, d, sizes.tower_ffn, query_key=3.0, value=2.0)
    init.layer_norm(f"{prefix}final_layer_norm", d)
    init.linear(f"{prefix}head", d, d, 1 / math.sqrt(d))


def _encoder_layer(
    init: Init, layer: str, d: int, ffn: int, query_key: float, value: float
) -> None:
    std = 1 / math.sqrt(d)
    for name in ("q_proj", "k_proj"):
        init.linear(f"{layer}self_attn.{name}", d, d, query_key * std)
    for name in ("v_proj", "out_proj"):
        init.linear(f"{layer}self_attn.{name}", d, d, value * std)
    init.layer_norm(f"{layer}layer_norm1", d)
    init.layer_norm(f"{layer}layer_norm2", d)
    init.linear(f"{layer}mlp.fc1", ffn, d, std)
    init.linear(f"{layer}mlp.fc2", d, ffn, 0.5 / math.sqrt(ffn))
