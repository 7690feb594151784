"""Tiny checkpoints of every model family that the staged engine is tested with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.reference import llava_qwen, qwen_vl_checkpoint
from tests.reference.decoder import LanguageModel
from tests.reference.llava_qwen_checkpoint import FAMILIES, write_checkpoint
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN_VL
from tests.reference.staged_checkpoint import language_model, load_model

LLAVA_ONEVISION = "llava_onevision"
NAMES = (LLAVA_ONEVISION, *FAMILIES)
MROPE_NAMES = tuple(QWEN_VL)
# Layer boundaries and tokens a step of the engines that test modules share, by family.
MROPE_STEPS: dict[str, tuple[tuple[int, int, int], int]] = {
    QWEN2_5_VL: ((2, 4, 6), 512),
    QWEN3_VL: ((3, 5, 6), 256),
    QWEN3_VL_MOE: ((3, 5, 6), 512),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, and its decoder in Hugging Face."""

    name: str
    folder: Path
    language: LanguageModel

    def in_float64(self) -> LanguageModel:
        """The decoder in double precision."""
        return _language(self.name, self.folder, double=True)


def write_family(name: str, folder: Path) -> Checkpoint:
    """Write a checkpoint of LLaVA-NeXT's own layout or of a Qwen family, and load its decoder."""
    if name in QWEN_VL:
        qwen_vl_checkpoint.write_checkpoint(folder, name)
    else:
        write_checkpoint(folder, FAMILIES[name])
    return Checkpoint(name, folder, _language(name, folder))


def _language(name: str, folder: Path, double: bool = False) -> LanguageModel:
    if name == LLAVA_ONEVISION:
        model = load_model(folder)
        return language_model(model.double() if double else model)
    if name in QWEN_VL:
        model = qwen_vl_checkpoint.load_model(folder)
        return language_model(model.double() if double else model)
    found = llava_qwen.load(folder).language
    if double:
        found.decoder.double()
        found.lm_head.double()
    return found
