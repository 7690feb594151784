"""The decoder's pass over videos with many questions each.

Shape suffixes: B videos, N rows, V visual tokens, M questions, L tokens, D features, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from training.decoder import NAME
from training.lessons import Lesson, layout
from training.qwen3_vl.prompt import VideoPrompt
from training.qwen3_vl.sizes import BASE, VOCAB, text_config


class Student(nn.Module):
    """The decoder with its vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen3VLConfig(text_config=text_config()).text_config
        config._attn_implementation = NAME
        self.model = Qwen3VLTextModel(config).float()
        self.lm_head = nn.Linear(BASE.width, VOCAB, bias=False)

    def forward(
        self, prompt: VideoPrompt, visual_BVD: Tensor, deepstack: list[Tensor], lesson: Lesson
    ) -> Tensor:
        """Logits [B, M * L, W] of the questions' rows.

        `deepstack` has a tensor [B, V, D] a level, which is added to the output of the decoder
        layer with this number.
        """
        model, embed = self.model, self.model.embed_tokens
        videos, questions, length = lesson.ids_BML.shape
        video_rows = len(prompt.ids_N)
        video_BND = embed(prompt.ids_N)[None].expand(videos, -1, -1)
        video_BND = video_BND.index_copy(1, prompt.visual_V, visual_BVD.float())
        hidden_BND = torch.cat([video_BND, embed(lesson.ids_BML.flatten(1))], 1)
        place_N, mask_NN = layout(video_rows, questions, length)
        asked_N = place_N[video_rows:] - video_rows + prompt.end
        position_3N = torch.cat([prompt.position_3N, asked_N.expand(3, -1)], 1)
        turn = model.rotary_emb(hidden_BND, position_3N[:, None])
        for number, layer in enumerate(model.layers):
            hidden_BND = layer(
                hidden_BND,
                position_embeddings=turn,
                attention_mask=mask_NN[None, None],
                video_rows=video_rows,
            )
            if number < len(deepstack):
                level = deepstack[number].to(hidden_BND.dtype)
                hidden_BND = hidden_BND.index_add(1, prompt.visual_V, level)
        logits_BNW: Tensor = self.lm_head(model.norm(hidden_BND[:, video_rows:]))
        return logits_BNW.float()
