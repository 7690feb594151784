"""What Hugging Face's processor and model say of a video prompt for Qwen, and METok's prompt of it.

Positions, the text between frames and the rows of pooled frames are made by `tests.reference` from
the dense prompt and stage 1's decisions.

Shape suffixes: T temporal patches, P features of one, W their channels with deepstack, N prompt
tokens, S answer tokens, D features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from metok_vllm.config import METokConfig
from metok_vllm.video import VideoFrames
from tests.engine.staged_prompts import Frame, planned_video
from tests.reference import mrope, stage1
from tests.reference.decoder import Video
from tests.reference.mrope import VIDEO, Kept, Medium, Positions, cell_centres
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL

MERGE = 2
VISION_END = ID_OF["<|vision_end|>"]


@dataclass(frozen=True)
class DecoderInput:
    """Arguments of the reference's `generate`."""

    embeds_ND: Tensor
    video: Video
    rotary: Positions
    deepstack: list[Tensor]


class DensePrompt:
    """One question about one video, as Hugging Face's own processor writes it."""

    def __init__(self, plain: Any, processor: Any, frames: VideoFrames, question: str) -> None:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=processor.tokenizer.chat_template,
            add_generation_prompt=True,
        )
        metadata = VideoMetadata(
            total_num_frames=frames.total_frames,
            fps=frames.fps,
            frames_indices=list(frames.indices),
        )
        self.plain = plain
        self.inputs = processor(
            text=text,
            videos=[torch.tensor(frames.frames_THWC).permute(0, 3, 1, 2)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        self.ids: list[int] = self.inputs["input_ids"][0].tolist()
        ((count, height, width),) = self.inputs["video_grid_thw"].tolist()
        seconds = 1.0
        if plain.config.model_type == QWEN2_5_VL:
            seconds = float(self.inputs["second_per_grid_ts"][0])
        self.medium = Medium(count, height // MERGE, width // MERGE, seconds)
        family = plain.config.model_type
        self.rotary = mrope.dense_positions(family, self.ids, [], [self.medium])

    @torch.no_grad()
    def logprobs(self, answer: list[int]) -> Tensor:
        """Log-probabilities [S, V] of `answer` by the whole model in one forward pass."""
        ids = [*self.ids, *answer[:-1]]
        places = torch.tensor([self.rotary.at(index) for index in range(len(ids))])
        logits_1NV = self.plain(
            input_ids=torch.tensor([ids]),
            position_ids=places.T[:, None],
            pixel_values_videos=self.inputs["pixel_values_videos"],
            video_grid_thw=self.inputs["video_grid_thw"],
        ).logits
        return torch.log_softmax(logits_1NV[0, len(self.ids) - 1 :], -1)

    def given_to_decoder(self, config: METokConfig, decision: Any) -> DecoderInput:
        """METok's prompt by stage 1's `decision`."""
        frame, start, length = self._frame()
        strides = [
            frame.strides(config)[number] if 1 in config.stages else 1
            for number in decision["class_of_frame"]
        ]
        places = [cell_centres(frame.grid, stride) for stride in strides]
        size = self.medium.rows * self.medium.columns
        kept = Kept(start, length, mrope.kept_tokens(places, size, frame.before, frame.after))
        ids = mrope.kept_of_prompt(self.ids, [kept])
        video = planned_video(start, decision, config, len(kept.tokens), len(ids), frame)
        with torch.no_grad():
            embeds_ND = self.plain.get_input_embeddings()(torch.tensor(ids)).clone()
            seen = self.plain.model.get_video_features(
                self.inputs["pixel_values_videos"], self.inputs["video_grid_thw"]
            )
        deeper = [level[0] for level in getattr(seen, "deepstack_features", None) or []]
        x_TPW = torch.cat([seen.pooler_output[0], *deeper], -1).unflatten(0, (-1, size))
        rows_NW = torch.cat(
            [
                stage1.pool_frame(x_PW, frame.grid, stride, "area")
                for x_PW, stride in zip(x_TPW, strides, strict=True)
            ]
        )
        is_visual = torch.tensor(ids) == VIDEO
        levels = rows_NW.unflatten(1, (1 + len(deeper), -1)).unbind(1)
        embeds_ND[is_visual] = levels[0]
        deepstack = [torch.zeros_like(embeds_ND) for _ in deeper]
        for level, rows_ND in zip(deepstack, levels[1:], strict=True):
            level[is_visual] = rows_ND
        return DecoderInput(embeds_ND, video, mrope.kept_positions(self.rotary, [kept]), deepstack)

    def _frame(self) -> tuple[Frame, int, int]:
        """How frames are pooled with the text around them, and the video's first token and length.

        The template's own marks stand around the video.
        """
        size = self.medium.rows * self.medium.columns
        first = self.ids.index(VIDEO)
        end = len(self.ids) - self.ids[::-1].index(VIDEO)
        grid = (self.medium.rows, self.medium.columns)
        if self.plain.config.model_type == QWEN2_5_VL:
            return Frame(grid, "area", stage1.NOWHERE, MERGE), first, end - first
        start = self.ids.index(ID_OF["<|vision_start|>"]) + 1
        end += 1
        before, at = [], start
        for _ in range(self.medium.frames):
            visual = self.ids.index(VIDEO, at)
            before.append(visual - at)
            at = visual + size + 1
            assert self.ids[at - 1] == VISION_END
        assert at == end
        after = [1] * self.medium.frames
        return Frame(grid, "area", stage1.NOWHERE, MERGE, before, after), start, end - start
