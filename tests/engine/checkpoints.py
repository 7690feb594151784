"""Tiny checkpoints of every model family that the staged engine is tested with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.reference import llava_qwen
from tests.reference.decoder import LanguageModel
from tests.reference.llava_qwen_checkpoint import FAMILIES, write_checkpoint
from tests.reference.staged_checkpoint import language_model, load_model

LLAVA_ONEVISION = "llava_onevision"
NAMES = (LLAVA_ONEVISION, *FAMILIES)


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
    """Write a checkpoint of LLaVA-NeXT's own layout and load its decoder."""
    write_checkpoint(folder, FAMILIES[name])
    return Checkpoint(name, folder, _language(name, folder))


def _language(name: str, folder: Path, double: bool = False) -> LanguageModel:
    if name == LLAVA_ONEVISION:
        model = load_model(folder)
        return language_model(model.double() if double else model)
    found = llava_qwen.load(folder).language
    if double:
        found.decoder.double()
        found.lm_head.double()
    return found
