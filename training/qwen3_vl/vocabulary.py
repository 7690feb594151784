"""The tokenizer: the demo's, with Qwen3-VL's special tokens and one token for " seconds"."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from training.qwen3_vl.sizes import SECONDS, SPECIAL
from training.tokenizers import CHAT_SPECIAL, write_json


def qwen3_tokenizer(demo: Tokenizer) -> Tokenizer:
    """The tokenizer. Tokens of text keep the demo's numbers; special tokens come last."""
    file = json.loads(demo.to_str())
    text = {token: n for token, n in file["model"]["vocab"].items() if token not in CHAT_SPECIAL}
    assert sorted(text.values()) == list(range(len(text)))
    pieces = demo.encode(SECONDS).tokens
    whole = pieces[0]
    for piece in pieces[1:]:
        file["model"]["merges"].append([whole, piece])
        whole += piece
        text[whole] = len(text)
    file["model"]["vocab"] = text
    frame = {key: value for key, value in file["added_tokens"][0].items() if key != "content"}
    file["added_tokens"] = [
        {**frame, "id": len(text) + n, "content": token} for n, token in enumerate(SPECIAL)
    ]
    return Tokenizer.from_str(json.dumps(file))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Numbers of the special tokens."""
    known: dict[str, int] = tokenizer.get_vocab()
    return {token: known[token] for token in SPECIAL}


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """`tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen3VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
