"""The decoder and what it is given to see in each phase of its training.

First the attributes themselves (learned vectors, one token a frame), then the same vectors where
they are in the picture, then the vision tower's features through a projector that was fitted to
those vectors. Learning to look things up from pixels at once does not get off the ground.

Shape suffixes: B videos, T frames, P patches, N rows, M questions, L tokens, D features, V words.
"""
# MERGED DOC
# """Attention of a video and many questions about it, with a mask for the questions alone.
#
# The video's rows are plainly causal, and many: without a mask their attention costs half as much on
# a CPU, and a step of training two thirds.
#
# Shape suffixes: B videos, H heads, N rows, D features.
# """

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

# A dot fills one patch in four that are pooled, and few of a frame's: it would hardly be found.
DOT_WEIGHT = 6


class Attributes(nn.Module):
    """Learned vectors for what a frame shows; they stand in for vision until there is some."""

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
        """One vector a frame [N, 1, D]: the sum of all that it shows."""
        parts = (
            self.background(truth.background),
            self.colour(truth.colour),
            self.shape(truth.shape),
            self.count(truth.count),
            self.dot(truth.dot),
        )
        return torch.stack(parts).sum(0)[:, None]

    def patches(self, truth: Truth) -> Tensor:
        """A vector a patch [N, P, D]: the background, and shapes and dot where they are.

        How many shapes there are is nowhere said: that has to be counted.
        """
        thing_ND = self.colour(truth.colour) + self.shape(truth.shape)
        shape_NP1, dot_NP1 = truth.shape_cover_NP[..., None], truth.dot_cover_NP[..., None]
        ground_NPD = self.background(truth.background)[:, None] + self.place
        dot_NPD = DOT_WEIGHT * dot_NP1 * self.dot(truth.dot)[:, None]
        return ground_NPD + shape_NP1 * thing_ND[:, None] + dot_NPD  # type: ignore[no-any-return]


class Projector(nn.Module):
    """LLaVA-OneVision's projector after a normalisation that is folded into it when it is saved."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear_1 = nn.Linear(width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features_NPD: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1((features_NPD - self.mean) / self.scale)))  # type: ignore[no-any-return]


class Student(nn.Module):
    """Decoder and newline; the rest of the video model is given to it as visual tokens."""

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
        """Logits [B, M * L, V] of the questions' rows. `before`: ids in front of the video."""
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
        return self.decoder.lm_head(hidden_BND[:, video_BND.shape[1] :])  # type: ignore[no-any-return]


def answer_loss(logits_BNV: Tensor, lesson: Lesson) -> Tensor:
    """Mean cross entropy of the answers' tokens, each question weighing the same."""
    labels = lesson.label_BML
    loss = F.cross_entropy(
        logits_BNV.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    return (loss.sum(-1) / (labels != IGNORED).sum(-1)).mean()


def right_answers(logits_BNV: Tensor, lesson: Lesson) -> Tensor:
    """Which questions are answered rightly to the last token, bool [B, M].

    Greedy decoding would say the same: an answer is right when each next token is the likeliest.
    """
    labels = lesson.label_BML
    guess = logits_BNV.argmax(-1).view_as(labels)
    return ((guess == labels) | (labels == IGNORED)).all(-1)


def pool(patches_NPD: Tensor, grid: int) -> Tensor:
    """The model's own pooling at stride 2: means of two by two patches."""
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
