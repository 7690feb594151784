"""Stage 1 from a checkpoint directory with Hugging Face's own modules, one frame at a time.

The engine's encoder is held against this: no batching, no vLLM, nothing of the package's encoder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, LlavaOnevisionForConditionalGeneration

from metok_vllm.config import METokConfig
from tests.reference import stage1


@dataclass(frozen=True)
class Stage1Result:
    """Everything stage 1 decides about one video, and the [N, D] tokens it hands on.

    `class_T` is the budgeted class, `natural_T` the one of steps 1 to 6 without a budget.
    `aligned` is False where the relevance is the fallback's.
    """

    tokens_ND: Tensor
    event_of_token: list[int]
    event_T: list[int]
    relevance_T: list[float]
    natural_T: list[int]
    class_T: list[int]
    key_events: set[int]
    event_relevance: list[float]
    cosines: list[float]
    aligned: bool


def stage1_from_checkpoint(
    model_dir: str | Path,
    alignment_dir: str | Path | None,
    mode: str,
    pixel_values_TCHW: Tensor,
    query: str,
    config: METokConfig,
    *,
    max_windows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Stage1Result:
    """Encode one video for one question.

    `pixel_values_TCHW` are normalised as the video model wants them. `mode` is `separate`, `shared`
    or `none`; without `alignment_dir` or without a query it is `none`. `max_windows` cuts a query
    that is longer than so many windows.
    """
    model_dir = Path(model_dir)
    model = load_video_model(model_dir, dtype)
    frames = [frame.to(dtype) for frame in pixel_values_TCHW]
    with torch.no_grad():
        before_projector = [vision_features(model, frame) for frame in frames]
        patches = [model.model.multi_modal_projector(feature) for feature in before_projector]
        means = [patch_PD.double().mean(dim=0).tolist() for patch_PD in patches]

        aligned = alignment_dir is not None and mode != "none" and query.strip() != ""
        relevance: list[float] = []
        if alignment_dir is not None and aligned:
            alignment_dir = Path(alignment_dir)
            towers = load_alignment(alignment_dir, dtype)
            text = text_embedding(towers, alignment_dir, query, max_windows)
            for frame, feature in zip(frames, before_projector, strict=True):
                if mode == "shared":
                    image = shared_embedding(towers, feature)
                else:
                    pixels = alignment_pixels(frame, model_dir, alignment_dir, towers)
                    image = pooled(towers.get_image_features(pixel_values=pixels[None]))
                relevance.append(stage1.cosine(image.double().tolist(), text.double().tolist()))

    cosines = stage1.adjacent_cosines(means)
    event_of = stage1.event_of_frames(cosines, config.num_events)
    if not aligned:
        relevance = stage1.fallback_relevance(means, event_of)
    ratio, per_event = config.key_event_ratio, config.key_frames_per_event
    natural = stage1.natural_classes(event_of, relevance, ratio, per_event)
    fine, medium, _ = stage1.budget(len(frames), config.num_events, ratio, per_event)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium)
    vision = model.config.vision_config
    packed = stage1.pack(
        torch.stack(patches),
        classes,
        event_of,
        model.model.image_newline.detach(),
        vision.image_size // vision.patch_size,
        config.strides,
        "bilinear",
        reduce=config.reduce,
    )
    return Stage1Result(
        packed.tokens_ND,
        packed.event_of_token,
        event_of,
        relevance,
        natural,
        classes,
        stage1.key_events(event_of, relevance, ratio),
        stage1.event_relevances(event_of, relevance),
        cosines,
        aligned,
    )


@lru_cache(maxsize=4)
def load_video_model(model_dir: Path, dtype: torch.dtype) -> Any:
    return _load(LlavaOnevisionForConditionalGeneration, model_dir, dtype)


@lru_cache(maxsize=4)
def load_alignment(alignment_dir: Path, dtype: torch.dtype) -> Any:
    return _load(AutoModel, alignment_dir, dtype)


@lru_cache(maxsize=4)
def load_tokenizer(alignment_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(alignment_dir)


def _load(family: Any, path: Path, dtype: torch.dtype) -> Any:
    # A weight that is silently left at its random initialisation would make this no reference.
    model, info = family.from_pretrained(
        path, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"weights missing from the checkpoint: {sorted(info['missing_keys'])}")
    return model.eval()


def vision_features(model: Any, frame_CHW: Tensor) -> Tensor:
    """What the projector is given for one frame: [P, D_vision]."""
    hidden = model.model.vision_tower(frame_CHW[None], output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    layers = [layer] if isinstance(layer, int) else layer
    features_PD = torch.cat([hidden[number][0] for number in layers], dim=-1)
    if model.config.vision_feature_select_strategy == "default":
        return features_PD[1:]
    return features_PD


def shared_embedding(towers: Any, features_PD: Tensor) -> Tensor:
    """The alignment tower's pooling head over the video model's own patch features: [D]."""
    normed_1PD = towers.vision_model.post_layernorm(features_PD[None])
    embedding: Tensor = towers.vision_model.head(normed_1PD)[0]
    return embedding


def pooled(output: Any) -> Tensor:
    """The one pooled row of a Hugging Face tower's output."""
    row: Tensor = output.pooler_output[0]
    return row


def alignment_pixels(
    frame_CHW: Tensor, model_dir: Path, alignment_dir: Path, towers: Any
) -> Tensor:
    """Video-model pixels turned into alignment-model pixels."""
    mean, std = pixel_statistics(model_dir, "video_processor")
    picture = frame_CHW * std.to(frame_CHW) + mean.to(frame_CHW)
    size = towers.config.vision_config.image_size
    if tuple(picture.shape[1:]) != (size, size):
        picture = functional.interpolate(
            picture[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )[0]
    mean, std = pixel_statistics(alignment_dir, "image_processor")
    return (picture - mean.to(picture)) / std.to(picture)


def pixel_statistics(path: Path, processor: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3, 1, 1] from the processor's file, whichever name it has."""
    names = ["video_preprocessor_config.json"] if processor == "video_processor" else []
    for name in [*names, "processor_config.json", "preprocessor_config.json"]:
        if not (path / name).exists():
            continue
        values = json.loads((path / name).read_text())
        values = values.get(processor, values)
        if "image_mean" in values:
            mean, std = torch.tensor(values["image_mean"]), torch.tensor(values["image_std"])
            return mean.reshape(3, 1, 1), std.reshape(3, 1, 1)
    raise ValueError(f"no {processor} with image_mean in the checkpoint")


def query_windows(tokenizer: Any, query: str, window: int) -> list[list[int]]:
    """Token ids of the query in windows of `window` tokens, special tokens and padding included."""
    body = tokenizer(query, add_special_tokens=False)["input_ids"]
    wrapped = tokenizer(query)["input_ids"]
    special = len(wrapped) - len(body)
    before = next(n for n in range(special + 1) if wrapped[n : n + len(body)] == body)
    prefix, suffix = wrapped[:before], wrapped[before + len(body) :]
    step = window - special
    windows = []
    for start in range(0, max(len(body), 1), step):
        ids = prefix + body[start : start + step] + suffix
        windows.append(ids + [tokenizer.pad_token_id] * (window - len(ids)))
    return windows


def text_embedding(
    towers: Any, alignment_dir: Path, query: str, max_windows: int | None = None
) -> Tensor:
    """[D]: the element-wise maximum over the query's windows."""
    tokenizer = load_tokenizer(alignment_dir)
    positions = towers.config.text_config.max_position_embeddings
    windows = query_windows(tokenizer, query, min(tokenizer.model_max_length, positions))
    result: Tensor | None = None
    for ids in windows[:max_windows]:
        embedding = pooled(towers.get_text_features(input_ids=torch.tensor([ids])))
        result = embedding if result is None else torch.maximum(result, embedding)
    assert result is not None
    return result
