"""1,000 frames at LongVA-7B's geometry: 28 layers, 24 x 24 patches a frame, tiny widths.

Dense, the prompt has 144,001 visual tokens. With METok it takes four chunks of 8,192 tokens, and
stages 1 and 2 run in row blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from metok_vllm.config import METokConfig
from metok_vllm.engine.request_costs import engine_sizes
from metok_vllm.plan.costs import TEXT_BEFORE, TEXT_TOKENS, request_cost
from tests.engine.engines import SMALL_DUMMIES, EnginePool
from tests.engine.staged import BLOCK, StagedEngine
from tests.engine.staged_prompts import Clip, make_prompt
from tests.reference.decoder import LanguageModel
from tests.reference.staged_checkpoint import Sizes, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(300)]

FRAMES, DENSE_TOKENS, BUDGET = 1000, 144_001, 8192
SIZES = Sizes(layers=28, hidden=32, heads=1, kv_heads=1, intermediate=32, image=192, patch=8)
BOUNDARIES = (4, 12, 20)
# The processed frames, in float32, are 442 MB. All else fits in the memory of two more copies.
PEAK_BYTES = 3 * FRAMES * 3 * 192 * 192 * 4


@pytest.fixture(scope="module")
def engine(
    engines: EnginePool, staged_reference: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StagedEngine]:
    folder: Path = tmp_path_factory.mktemp("longva") / "model"
    write_checkpoint(folder, SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METOK_MEDIA_MAX_FRAMES", str(FRAMES))
        yield StagedEngine(
            engines,
            folder,
            staged_reference,
            BOUNDARIES,
            max_model_len=32768,
            max_num_batched_tokens=BUDGET,
            # Enough for the longest dense prompt, in seven groups of four layers; vLLM checks it.
            num_gpu_blocks_override=7 * 32768 // BLOCK + 64,
            limit_mm_per_prompt={"image": 0, "video": {"count": 1, **SMALL_DUMMIES}},
        )


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The largest growth of this process's resident memory in bytes, in the list at the end."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def test_a_prompt_of_1000_frames_is_pruned_as_planned(engine: StagedEngine) -> None:
    vllm_config: Any = engine.llm.llm_engine.vllm_config
    config = METokConfig.from_dict(vllm_config.model_config.hf_config.metok)
    cost = request_cost(FRAMES, config, engine_sizes(config, vllm_config))
    assert cost.dense.visual_tokens == DENSE_TOKENS
    assert (cost.metok.prefill_steps, cost.row_blocks) == (4, (3, 2, 1))

    clip = Clip(8, (250, 400, 60, 190, 100))
    prompt = make_prompt((TEXT_BEFORE, clip, TEXT_TOKENS - TEXT_BEFORE), {})
    with peak_memory() as peak:
        held, rows = engine.measure(prompt)
    assert sum(held) == cost.decode_blocks
    # All layers of a stage run on the same rows, fewer from boundary to boundary.
    assert rows[0] == cost.metok.prompt_tokens == 27_533
    assert sorted(set(rows), reverse=True) == [27_533, 19_448, 13_661, TEXT_TOKENS]
    assert [rows.index(count) for count in (19_448, 13_661, TEXT_TOKENS)] == list(BOUNDARIES)
    assert 0 < peak[0] < PEAK_BYTES, f"{peak[0] / 2**20:.0f} MiB"

    answer = engine.answer_alone(prompt, new_tokens=4)
    assert len(answer.tokens) == 4
    assert answer.prompt_tokens == cost.metok.prompt_tokens
