"""The decoder, its inputs in each phase of training, and the attention of its batches.

The inputs are first learned attribute vectors, one token a frame; then the same vectors by patch;
then the vision tower's features through a projector that was fitted to those vectors. Training on
vision features from the start does not converge.

The rows of a video have causal attention, and only the questions need a mask. Without a mask for
the video, attention costs half as much on a CPU and a training step two thirds.

Shape suffixes: B videos, T frames, P patches, H heads, N rows, M questions, L tokens, D features,
V words.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import repeat_kv

from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES
from training.bank import Truth
from training.lessons import IGNORED, Lesson, layout
from training.sizes import Sizes, text_config

# A dot covers one of four pooled patches and few of a frame; its vector is enlarged to compensate.
DOT_WEIGHT = 6


class Attributes(nn.Module):
    """Learned vectors of a frame's attributes, which replace vision features at first."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        colours = len(COLOURS)
        self.background = nn.Embedding(colours, width)
        self.colour = nn.Embedding(colours, width)
        self.shape = nn.Embedding(len(SHAPES), width)
        self.count = nn.Embedding(len(COUNTS), width)
        self.dot = nn.Embedding(colours, width)
        self.place = nn.Parameter(torch.zeros(patches, width))
        for table in (self.background, self.colour, self.shape, self.count, self.dot):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.place, std=0.3)

    def frames(self, truth: Truth) -> Tensor:
        """One vector a frame [N, 1, D]: the sum of its attributes."""
        parts = (
            self.background(truth.background),
            self.colour(truth.colour),
            self.shape(truth.shape),
            self.count(truth.count),
            self.dot(truth.dot),
        )
        return torch.stack(parts).sum(0)[:, None]

    def patches(self, truth: Truth) -> Tensor:
        """A vector a patch [N, P, D]: background, and shapes and dot by coverage.

        The number of shapes is not encoded: the decoder has to count.
        """
        thing_ND = self.colour(truth.colour) + self.shape(truth.shape)
        shape_NP1, dot_NP1 = truth.shape_cover_NP[..., None], truth.dot_cover_NP[..., None]
        ground_NPD = self.background(truth.background)[:, None] + self.place
        dot_NPD = DOT_WEIGHT * dot_NP1 * self.dot(truth.dot)[:, None]
        patch_NPD: Tensor = ground_NPD + shape_NP1 * thing_ND[:, None] + dot_NPD
        return patch_NPD


class Projector(nn.Module):
    """LLaVA-OneVision's projector after a normalisation, which is folded in when it is saved."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear_1 = nn.Linear(width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features_NPD: Tensor) -> Tensor:
        hidden = F.gelu(self.linear_1((features_NPD - self.mean) / self.scale))
        projected_NPD: Tensor = self.linear_2(hidden)
        return projected_NPD


class Student(nn.Module):
    """The decoder and the newline; the rest of the video model provides visual tokens."""

    def __init__(self, sizes: Sizes, ids: dict[str, int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = Qwen2Config.from_dict(text_config(sizes, ids), attn_implementation=NAME)
        self.decoder = Qwen2ForCausalLM(config).float()
        self.newline = nn.Parameter(torch.randn(sizes.width) * 0.5)
        for name, weight in self.decoder.named_parameters():
            if weight.dim() == 2:
                std = 0.8 / math.sqrt(weight.shape[1])
                if "o_proj" in name or "down_proj" in name:
                    std /= 4
                nn.init.normal_(weight, std=0.5 if "embed_tokens" in name else std)

    def forward(self, before: Tensor, visual_BND: Tensor, lesson: Lesson) -> Tensor:
        """Logits [B, M * L, V] of the questions' rows. `before` are the ids before the video."""
        embed = self.decoder.model.embed_tokens
        videos, questions, length = lesson.ids_BML.shape
        text_BND = embed(lesson.ids_BML.flatten(1))
        front_BND = embed(before)[None].expand(videos, -1, -1)
        newline_BND = self.newline.expand(videos, 1, -1)
        video_BND = torch.cat([front_BND, visual_BND, newline_BND], 1)
        place_N, mask_NN = layout(video_BND.shape[1], questions, length)
        hidden_BND = self.decoder.model(
            inputs_embeds=torch.cat([video_BND, text_BND], 1),
            attention_mask=mask_NN[None, None],
            position_ids=place_N[None],
            video_rows=video_BND.shape[1],
            use_cache=False,
        ).last_hidden_state
        logits_BNV: Tensor = self.decoder.lm_head(hidden_BND[:, video_BND.shape[1] :])
        return logits_BNV


def answer_loss(logits_BNV: Tensor, lesson: Lesson) -> Tensor:
    """Mean cross entropy of the answers' tokens, with equal weight for each question."""
    labels = lesson.label_BML
    loss = F.cross_entropy(
        logits_BNV.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    return (loss.sum(-1) / (labels != IGNORED).sum(-1)).mean()


def right_answers(logits_BNV: Tensor, lesson: Lesson) -> Tensor:
    """The questions with a completely right answer, bool [B, M].

    This equals greedy decoding: each token of the answer is the most likely next one.
    """
    labels = lesson.label_BML
    guess = logits_BNV.argmax(-1).view_as(labels)
    return ((guess == labels) | (labels == IGNORED)).all(-1)


def pool(patches_NPD: Tensor, grid: int) -> Tensor:
    """The model's own pooling at stride 2: the mean of two by two patches."""
    frames, _, width = patches_NPD.shape
    cells = patches_NPD.view(frames, grid // 2, 2, grid // 2, 2, width).mean((2, 4))
    return cells.flatten(1, 2)


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
    """Attention output [B, N, H, D] with the signature of transformers' attention functions.

    The first `video_rows` are causal. `attention_mask` is bool [1, 1, N, N].
    """
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
