"""The demo's two tokenizers: byte-level BPE on plain English and on event-QA's sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES

CORPUS = Path(__file__).resolve().parent / "corpus.txt"

# Qwen2's splitting rule: words with their leading space, single digits, runs of punctuation.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
# T5's and therefore SigLIP's: padding is done with the end token.
ALIGNMENT_SPECIAL = ["<pad>", "</s>", "<unk>"]
ALIGNMENT_WINDOW = 64


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Numbers of the chat's special tokens."""
    known: dict[str, int] = tokenizer.get_vocab()
    return {token: known[token] for token in CHAT_SPECIAL}


def chat_tokenizer(vocab_size: int) -> Tokenizer:
    """As Qwen2's: NFC, byte-level BPE, special tokens last."""
    tokenizer = _trained(vocab_size - len(CHAT_SPECIAL), NFC(), special=[])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CHAT_SPECIAL])
    assert tokenizer.get_vocab_size() == vocab_size, "the corpus is too small for the vocabulary"
    return tokenizer


def alignment_tokenizer(vocab_size: int) -> Tokenizer:
    """As SigLIP's: lower case, no punctuation, `</s>` at the end."""
    normalizer = Sequence([NFC(), Lowercase(), Replace(Regex(r"[^\w\s]"), ""), Strip()])
    tokenizer = _trained(vocab_size, normalizer, special=ALIGNMENT_SPECIAL)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert tokenizer.get_vocab_size() == vocab_size, "the corpus is too small for the vocabulary"
    return tokenizer


def _trained(vocab_size: int, normalizer: Any, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = PreTokenizers(
        [Split(Regex(WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    lines = sentences() + CORPUS.read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write_chat_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """`tokenizer.json` and `tokenizer_config.json` of the video model; returns the tokenizer."""
    tokenizer = chat_tokenizer(vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "image_token": "<image>",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "LlavaOnevisionProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        "video_token": "<video>",
    }
    write_json(folder / "tokenizer_config.json", config)
    return tokenizer


def write_alignment_tokenizer(folder: Path, vocab_size: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json` of the alignment towers."""
    alignment_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    config = {
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        # SigLIP was trained without an attention mask: the text tower attends to padding.
        "model_input_names": ["input_ids"],
        "model_max_length": ALIGNMENT_WINDOW,
        "pad_token": "</s>",
        "processor_class": "SiglipProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


REPEATS = 20  # makes byte-pair encoding merge these words before others


def sentences() -> list[str]:
    """All question and answer texts of event-QA."""
    lines = ["List the scenes in order.", "Which scene is first?", "Which scene is last?"]
    lines += ["yes", "no", *COUNTS, *(f"the {count}" for count in COUNTS)]
    for colour in COLOURS:
        lines += [
            colour,
            f"What is in the {colour} scene?",
            f"What colour is the dot in the {colour} scene?",
            f"How many shapes are in the {colour} scene?",
            f"Which scene comes after the {colour} scene?",
            f"Which scene comes before the {colour} scene?",
        ]
        for shape in SHAPES:
            lines += [
                f"{colour} {shape}",
                f"Which scene shows a {colour} {shape}?",
                f"Is there a {colour} {shape}?",
            ]
    return lines * REPEATS
