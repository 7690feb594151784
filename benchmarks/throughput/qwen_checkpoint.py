"""Qwen2.5-VL and Qwen3-VL in their published layouts, written with random weights.

The tokenizer has the demo's words and Qwen's special tokens at Qwen's ids; unused words lie between
them, so that every id has a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.throughput import weights
from metok_vllm.benchmarks.throughput.qwen_sizes import SPECIAL_IDS, QwenSizes
from metok_vllm.demo import MODEL_DIR

# Qwen's templates write an item of a message this way; the processor then fills in the pad.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type in ('image', 'video') %}"
    "{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_model(folder: Path, sizes: QwenSizes, seed: int) -> None:
    """Write what a repository of the hub holds, with weights if `sizes` says so."""
    import transformers

    folder.mkdir()
    files = {
        "config.json": {**sizes.config, "transformers_version": transformers.__version__},
        "generation_config.json": {
            "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
            "eos_token_id": [SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<|endoftext|>"]],
            "pad_token_id": SPECIAL_IDS["<|endoftext|>"],
        },
        "tokenizer.json": _tokenizer(int(sizes.text["vocab_size"])),
        "tokenizer_config.json": _tokenizer_settings(),
        **sizes.files,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    if sizes.real_weights:
        config = transformers.AutoConfig.from_pretrained(folder)
        weights.save(folder, weights.qwen_weights(config, seed))


def _tokenizer(size: int) -> dict[str, Any]:
    tokenizer = _demo("tokenizer.json")
    words = tokenizer["model"]["vocab"]
    taken = {*words.values(), *SPECIAL_IDS.values()}
    words |= SPECIAL_IDS | {f"Ġ#{number}": number for number in range(size) if number not in taken}
    like = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] = [
        {**like, "id": number, "content": token} for token, number in SPECIAL_IDS.items()
    ]
    return tokenizer


def _tokenizer_settings() -> dict[str, Any]:
    of_llava = ("image_token", "video_token", "processor_class")
    settings = {k: v for k, v in _demo("tokenizer_config.json").items() if k not in of_llava}
    special = [token for token in SPECIAL_IDS if token != settings["pad_token"]]
    return {**settings, "additional_special_tokens": special}


def _demo(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))
    return content
