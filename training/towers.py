"""Alignment towers: an image tower and a text tower, trained together on frames and sentences.

The loss is SigLIP's pairwise sigmoid (Zhai et al. 2023, arXiv 2303.15343), where a sentence matches
every frame that it is true of, plus a classification of patches from the video model's layer. The
sentences include event-QA's questions, so frame ranking is at its best there.

Shape suffixes: B frames, S sentences, P patches, D features, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES
from training.bank import COVERED, Truth, to_pixels
from training.sizes import Sizes, alignment_config

SENTENCES = 48  # in a batch


@dataclass(frozen=True)
class Sentences:
    """S sentences, and whether each is true of each frame of the batch, bool [B, S]."""

    texts: list[str]
    true_BS: Tensor


class PatchReader(nn.Module):
    """Classifies patches by the video model's features; used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS), len(COLOURS) + 1, len(SHAPES) + 1, len(COLOURS) + 1)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(self.sizes))

    def shape_loss(self, features_BPD: Tensor, truth: Truth) -> Tensor:
        """Mean cross entropy of the shapes alone, for recoloured frames."""
        logits = self.heads(self.norm(features_BPD)).flatten(0, 1).split(self.sizes, -1)[2]
        label = (truth.shape[:, None] + 1) * (truth.shape_cover_NP > COVERED)
        return F.cross_entropy(logits, label.flatten())

    def loss(self, features_BPD: Tensor, truth: Truth) -> Tensor:
        """Mean cross entropy of background, colour, shape and dot of patches; class 0 is none."""
        logits = self.heads(self.norm(features_BPD)).flatten(0, 1).split(self.sizes, -1)
        covered = truth.shape_cover_NP > COVERED
        dotted = truth.dot_cover_NP > COVERED
        labels = (
            truth.background[:, None].expand_as(covered),
            (truth.colour[:, None] + 1) * covered,
            (truth.shape[:, None] + 1) * covered,
            (truth.dot[:, None] + 1) * dotted,
        )
        losses = [
            F.cross_entropy(guess, label.flatten())
            for guess, label in zip(logits, labels, strict=True)
        ]
        # Dots cover few patches, so their loss has a larger weight.
        return losses[0] + losses[1] + 2 * losses[2] + 3 * losses[3]


def new_towers(sizes: Sizes, seed: int) -> SiglipModel:
    """Untrained towers."""
    torch.manual_seed(seed)
    config = SiglipConfig.from_dict(alignment_config(sizes))
    model = SiglipModel(config)
    model.float()
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-3.0)
    return model


def video_features(model: SiglipModel, pixels_BCHW: Tensor, layers: int) -> Tensor:
    """The video model's features [B, P, D]: the image tower's first `layers` layers, no norm."""
    hidden_BPD: Tensor = model.vision_model.embeddings(pixels_BCHW)
    for layer in model.vision_model.encoder.layers[:layers]:
        hidden_BPD = _first(layer(hidden_BPD, attention_mask=None))
    return hidden_BPD


def image_embeddings(model: SiglipModel, features_BPD: Tensor, layers: int) -> Tensor:
    """Embeddings [B, D] from the video model's features by the remaining layers and the head."""
    for layer in model.vision_model.encoder.layers[layers:]:
        features_BPD = _first(layer(features_BPD, attention_mask=None))
    vision = model.vision_model
    embedding_BD: Tensor = vision.head(vision.post_layernorm(features_BPD))
    return embedding_BD


def draw_sentences(truth: Truth, number: int, rng: np.random.Generator) -> Sentences:
    """Descriptions of frames of the batch, and questions about them."""
    colours, texts, true = list(COLOURS), [], []
    attributes = {name: getattr(truth, name).numpy() for name in ("background", "colour", "shape")}
    count = truth.count.numpy()
    for frame in rng.integers(0, len(count), number):
        background, colour, shape = (int(values[frame]) for values in attributes.values())
        scene = attributes["background"] == background
        thing = (attributes["colour"] == colour) & (attributes["shape"] == shape)
        place, name = colours[background], f"{colours[colour]} {SHAPES[shape]}"
        match rng.integers(6):
            case 0 | 1:
                texts.append(_about_scene(place, rng))
                true.append(scene)
            case 2 | 3:
                texts.append(_about_thing(name, rng))
                true.append(thing)
            case 4:
                texts.append(f"a {name} in the {place} scene")
                true.append(scene & thing)
            case _:
                texts.append(f"{COUNTS[int(count[frame])]} shapes in the {place} scene")
                true.append(scene & (count == count[frame]))
    return Sentences(texts, torch.from_numpy(np.stack(true, 1)))


def _about_scene(place: str, rng: np.random.Generator) -> str:
    forms = (
        f"the {place} scene",
        f"What is in the {place} scene?",
        f"What colour is the dot in the {place} scene?",
        f"How many shapes are in the {place} scene?",
        f"Which scene comes after the {place} scene?",
        f"Which scene comes before the {place} scene?",
    )
    return forms[rng.integers(len(forms))]


def _about_thing(name: str, rng: np.random.Generator) -> str:
    forms = (f"a {name}", f"Which scene shows a {name}?", f"Is there a {name}?")
    return forms[rng.integers(len(forms))]


def tower_loss(
    model: SiglipModel,
    reader: PatchReader,
    tokenizer: Any,
    pixels_NHWC: Tensor,
    truth: Truth,
    sizes: Sizes,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """SigLIP's loss and the patch loss for one batch of frames."""
    features_BPD = video_features(model, to_pixels(pixels_NHWC), sizes.video_tower_layers)
    image_BD = image_embeddings(model, features_BPD, sizes.video_tower_layers)
    sentences = draw_sentences(truth, SENTENCES, rng)
    ids_SL = text_ids(tokenizer, sentences.texts, sizes.text_window)
    text_SD = model.text_model(input_ids=ids_SL).pooler_output
    logits_BS = F.normalize(image_BD, dim=-1) @ F.normalize(text_SD, dim=-1).T
    logits_BS = logits_BS * model.logit_scale.exp() + model.logit_bias
    sign_BS = sentences.true_BS.float() * 2 - 1
    siglip = -F.logsigmoid(sign_BS * logits_BS)
    # True and false pairs have equal weight in total.
    true, false = siglip[sentences.true_BS].mean(), siglip[~sentences.true_BS].mean()
    return true + false, reader.loss(features_BPD, truth)


def recoloured(pixels_NHWC: Tensor, rng: np.random.Generator) -> Tensor:
    """Frames uint8 with channels randomly permuted, inverted and raised to a power, per frame.

    The training split has only some combinations of shape and colour, from which a tower could
    infer the shape. Recoloured frames prevent that.
    """
    frames = len(pixels_NHWC)
    swap = torch.from_numpy(rng.permuted(np.tile(np.arange(3), (frames, 1)), axis=1))
    index = swap[:, None, None].expand_as(pixels_NHWC)
    share = pixels_NHWC.gather(-1, index).float() / 255
    invert = torch.from_numpy(rng.random((frames, 1, 1, 3)) < 0.5)
    power = torch.from_numpy(2 ** rng.uniform(-1, 1, (frames, 1, 1, 3)).astype(np.float32))
    share = torch.where(invert, 1 - share, share) ** power
    return (share * 255 + 0.5).to(torch.uint8)


def text_ids(tokenizer: Any, texts: list[str], window: int) -> Tensor:
    """Token ids int64 [S, L], padded to the window as in serving."""
    rows = [encoding.ids[:window] for encoding in tokenizer.encode_batch(texts)]
    pad = tokenizer.token_to_id("</s>")
    return torch.tensor([row + [pad] * (window - len(row)) for row in rows])


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
