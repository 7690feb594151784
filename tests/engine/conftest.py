"""Engines of this process, one per configuration, shared by all modules of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine.checkpoints import LLAVA_ONEVISION, MROPE_STEPS, Checkpoint, write_family
from tests.engine.engines import UNTRAINED, EnginePool
from tests.engine.staged import StagedEngine
from tests.reference.decoder import LanguageModel
from tests.reference.staged_checkpoint import language_model
from tests.untrained import ALIGNMENT_DIR


@pytest.fixture(scope="package")
def engines() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.stop()


@pytest.fixture(scope="package")
def plain(engines: EnginePool) -> Any:
    """vLLM with the plugin installed and METok not requested."""
    return engines.get(**UNTRAINED, num_gpu_blocks_override=512)


@pytest.fixture(scope="package")
def metok(engines: EnginePool) -> Any:
    """vLLM with METok and separate alignment towers."""
    config = {"metok": {"alignment_model": str(ALIGNMENT_DIR)}}
    return engines.get(**UNTRAINED, num_gpu_blocks_override=2048, additional_config=config)


@pytest.fixture(scope="package")
def staged_reference(staged_model: Any) -> LanguageModel:
    """The staged checkpoint's decoder in Hugging Face."""
    return language_model(staged_model)


@pytest.fixture(scope="package")
def checkpoint_of(
    staged_checkpoint: Path,
    staged_reference: LanguageModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Checkpoint]:
    """Checkpoints by the name of their family; each is written once."""

    @cache
    def get(name: str) -> Checkpoint:
        if name == LLAVA_ONEVISION:
            return Checkpoint(name, staged_checkpoint, staged_reference)
        return write_family(name, tmp_path_factory.mktemp(name) / "model")

    return get


@pytest.fixture(scope="package")
def mrope_engine(
    engines: EnginePool, checkpoint_of: Callable[[str], Checkpoint]
) -> Callable[..., StagedEngine]:
    """Engines of Qwen families by name, in short steps; `metok=False` for vLLM's own."""

    def get(name: str, *, metok: bool = True, **settings: Any) -> StagedEngine:
        checkpoint, (boundaries, step) = checkpoint_of(name), MROPE_STEPS[name]
        return StagedEngine(
            engines,
            checkpoint.folder,
            checkpoint.language,
            boundaries if metok else None,
            **{"max_num_batched_tokens": step, **settings},
        )

    return get


@pytest.fixture(scope="package")
def short_step(
    engines: EnginePool, staged_checkpoint: Path, staged_reference: LanguageModel
) -> StagedEngine:
    """Two layers a stage; prompts of more than 512 tokens are prefilled in chunks."""
    return StagedEngine(
        engines, staged_checkpoint, staged_reference, (2, 4, 6), max_num_batched_tokens=512
    )


@pytest.fixture(scope="package")
def stock(
    engines: EnginePool, staged_checkpoint: Path, staged_reference: LanguageModel
) -> StagedEngine:
    """vLLM's own engine on the staged checkpoint, with the steps of `short_step`."""
    return StagedEngine(
        engines, staged_checkpoint, staged_reference, None, max_num_batched_tokens=512
    )
