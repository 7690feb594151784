"""Processors of tiny Qwen checkpoints with METok, and their caches, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache.base import MultiModalProcessorOnlyCache
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs

from tests.engine.staged_prompts import QWEN, make_prompt
from tests.reference.qwen_vl_checkpoint import write_checkpoint


@dataclass
class Processor:
    """A processor and its cache, as the renderer has them."""

    processor: Any
    cache: Any

    def apply(
        self, prompt: Mapping[str, Any], *, cached: bool = True, uuid: str | None = None
    ) -> Any:
        inputs = ProcessorInputs(
            prompt["prompt_token_ids"],
            self.processor.info.parse_mm_data(prompt["multi_modal_data"]),
            None if uuid is None else {"video": [uuid]},
            prompt.get("mm_processor_kwargs", {}),
            cache=self.cache if cached else None,
        )
        return self.processor.apply(inputs, TimingContext(enabled=False))

    def ask(self, *parts: Any, **options: Any) -> Any:
        return self.apply(make_prompt(parts, options, media=QWEN))

    def layout(self, *parts: Any) -> Any:
        """The layout of the prompt's only video."""
        self.apply(make_prompt(parts, {}, media=QWEN), cached=False)
        return next(reversed(self.processor.layouts.entries.values()))


def make(folder: Path, family: str) -> Processor:
    write_checkpoint(folder, family)
    arguments = EngineArgs(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        additional_config={"metok": {}},
    )
    config = arguments.create_engine_config().model_config
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    return Processor(processor, MultiModalProcessorOnlyCache(config))
