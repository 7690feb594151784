"""Memory and work at LongVA-7B's geometry: 28 layers, 24 x 24 patches per frame, tiny widths.

The checkpoint is in LongVA's own layout. Blocks are the scheduler's and rows the layers' own; FLOPs
and bytes are those of LongVA-7B's widths on these rows and blocks. The bounds are the figures of
the paper's abstract, and docs/models.md has the table.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metok_vllm.engine.runner import COPIES_OF_ROWS
from tests.engine.engines import SMALL_DUMMIES, EnginePool
from tests.engine.staged import BLOCK, StagedEngine
from tests.engine.staged_expected import END_ID
from tests.engine.staged_prompts import OFF, Clip, make_prompt
from tests.reference.decoder import LanguageModel
from tests.reference.llava_qwen_checkpoint import LONGVA, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FRAMES_128 = Clip(8, (30, 50, 8, 25, 15))
LAYERS = 28
SIZES = replace(
    LONGVA, side=192, patch=8, layers=LAYERS, hidden=32, tower_hidden=32, heads=1, kv_heads=1
)
# The paper's boundaries, rounded to multiples of four: cache groups of equal size waste no memory.
BOUNDARIES = (4, 12, 20)
# As published: cache groups of three layers, and two layers' worth of memory wasted.
PAPER = (3, 10, 19)
# LongVA-7B: Qwen2-7B with 4 key-value heads of 128.
D, D_KV, D_MLP = 3584, 512, 18944
ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
FEWER_BLOCKS, FEWER_FLOPS, MORE_REQUESTS = 0.935, 0.806, 8
MAX_LEN = 18944
TEXT, PER_FRAME = 60, 144
# Blocks of all layers, in blocks of one: two dense requests of 64 frames, and some growth.
POOL = 28 * 600
SETTINGS: dict[str, Any] = {
    "max_model_len": MAX_LEN,
    "max_num_batched_tokens": MAX_LEN,
    "max_num_seqs": 64,
    # The requests are alike; each needs blocks of its own.
    "enable_prefix_caching": False,
    "limit_mm_per_prompt": {"image": 0, "video": {"count": 1, **SMALL_DUMMIES}},
}


@pytest.fixture(scope="module")
def make_engine(
    engines: EnginePool, staged_reference: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A function of pruning layers and the number of blocks; no test here uses the reference."""
    folder = tmp_path_factory.mktemp("longva") / "model"
    write_checkpoint(folder, SIZES)
    return partial(StagedEngine, engines, folder, staged_reference, **SETTINGS)


@pytest.fixture(scope="module")
def dense_at_once(make_engine: Any) -> int:
    """Requests of 64 frames that vLLM's own engine runs at once in the pool."""
    stock = make_engine(None, num_gpu_blocks_override=POOL // LAYERS)
    (layers,) = [len(group.layer_names) for group in stock.runner.kv_cache_config.kv_cache_groups]
    assert layers == LAYERS
    return at_once(stock)


@pytest.fixture(scope="module")
def engine(make_engine: Any) -> StagedEngine:
    engine: StagedEngine = make_engine(BOUNDARIES, num_gpu_blocks_override=POOL // BOUNDARIES[0])
    assert layers_by_group(engine) == [BOUNDARIES[0]] * 7
    return engine


def layers_by_group(engine: StagedEngine) -> list[int]:
    """Layers of each cache group."""
    groups = engine.runner.kv_cache_config.kv_cache_groups
    return [len(group.layer_names) for group in groups]


def at_once(engine: StagedEngine) -> int:
    """Add requests of 64 frames one by one until one waits or is preempted; the number before."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True, detokenize=False)
    prompt = make_prompt((20, Clip(7, (64,)), 40))
    running = 0
    while True:
        engine.llm.llm_engine.add_request(str(running), prompt, params)
        for _ in range(3):
            engine.llm.llm_engine.step()
        engine.check_blocks()
        requests = list(engine.scheduler.requests.values())
        if len(engine.scheduler.running) < len(requests):
            break
        assert not any(request.num_preemptions for request in requests)
        running = len(requests)
    engine.llm.llm_engine.abort_request([str(number) for number in range(running + 1)])
    assert engine.block_pool.get_num_free_blocks() == engine.block_pool.num_gpu_blocks - 1
    return running


def test_requests_at_once_in_one_pool(engine: StagedEngine, dense_at_once: int) -> None:
    assert dense_at_once == 2
    assert at_once(engine) >= MORE_REQUESTS * dense_at_once


def test_blocks_and_flops_of_128_frames(engine: StagedEngine) -> None:
    # Dense rows and blocks follow from the length, as a short clip shows.
    held, rows = engine.measure(make_prompt((20, Clip(8, (3, 5)), 40), OFF))
    assert (rows, sum(held)) == dense_cost(8 * PER_FRAME + TEXT)
    dense_rows, dense_blocks = dense_cost(128 * PER_FRAME + TEXT)

    held, rows = cost_of_128_frames(engine)
    assert len(rows) == LAYERS
    assert 1 - sum(held) / dense_blocks >= FEWER_BLOCKS
    assert 1 - sum(map(layer_flops, rows)) / sum(map(layer_flops, dense_rows)) >= FEWER_FLOPS
    row = table_row("default", BOUNDARIES, rows, held, BOUNDARIES[0])
    assert row in MODELS
    dense = f"| dense | | {total(dense_rows)} | | {total_blocks(dense_blocks * BOUNDARIES[0])} | |"
    assert dense in MODELS
    fewer_flops, less_memory = (row.split(" | ")[n].strip(" |") for n in (4, 7))
    readme = f"{fewer_flops} fewer prefill FLOPs and holds {less_memory} less KV memory"
    assert readme in README


@pytest.mark.thorough
def test_blocks_and_flops_at_the_paper_s_layers(make_engine: Any) -> None:
    # Ten groups must hold the longest prompt that the engine admits.
    engine = make_engine(PAPER, num_gpu_blocks_override=2 * POOL // PAPER[0])
    groups = layers_by_group(engine)
    assert max(groups) == PAPER[0]
    held, rows = cost_of_128_frames(engine)
    row = table_row("paper", PAPER, rows, held, PAPER[0])
    assert row in MODELS
    fewer_flops, less_memory = (row.split(" | ")[n].strip(" |") for n in (4, 7))
    assert f"{fewer_flops} and {less_memory} with the paper's layers" in README


def table_row(
    name: str, boundaries: tuple[int, ...], rows: list[int], held: list[int], group: int
) -> str:
    """The line of docs/models.md for what was measured; shares are less than dense."""
    dense_rows, dense_blocks = dense_cost(128 * PER_FRAME + TEXT)
    fewer_flops = 1 - sum(map(layer_flops, rows)) / sum(map(layer_flops, dense_rows))
    fewer_blocks = 1 - sum(held) * group / (dense_blocks * BOUNDARIES[0])
    layers = ", ".join(map(str, boundaries))
    work = f"{total(rows)} | {fewer_flops:.1%}".replace("%", " %")
    memory = f"{total_blocks(sum(held) * group)} | {fewer_blocks:.1%}".replace("%", " %")
    row = f"| {name} | {layers} | {work} | {memory} |"
    print(row)
    return row


def total(rows: list[int]) -> str:
    """Rows over all layers, and the FLOPs of LongVA-7B's widths on them."""
    return f"{sum(rows):,} | {sum(map(layer_flops, rows)) / 1e12:,.1f} T"


def total_blocks(blocks: int) -> str:
    """Blocks of one layer, and their bytes with LongVA-7B's keys and values in 16 bits."""
    return f"{blocks:,} | {blocks * BLOCK * 2 * D_KV * 2 / 2**20:,.1f} MiB"


@pytest.mark.parametrize(
    "budget", [512, *(pytest.param(more, marks=pytest.mark.thorough) for more in (2048, 8192))]
)
def test_chunks_cost_no_more(engine: StagedEngine, make_engine: Any, budget: int) -> None:
    in_one_step = cost_of_128_frames(engine)
    chunks = make_engine(
        BOUNDARIES,
        num_gpu_blocks_override=POOL // BOUNDARIES[0],
        max_num_batched_tokens=budget,
    )
    assert cost_of_128_frames(chunks) == in_one_step


@pytest.mark.parametrize("focus", ["turn", "conversation"])
def test_the_last_chunk_needs_no_more_than_was_profiled(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, focus: str
) -> None:
    """Tensors at once in a step's forward pass; the chunks before tell what the budget needs."""
    engine = make_engine(
        BOUNDARIES, num_gpu_blocks_override=POOL // BOUNDARIES[0], max_num_batched_tokens=512
    )
    peaks: list[int] = []
    inner = engine.runner._model_forward

    def profiled(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.profile(profile_memory=True) as profiler:
            result = inner(*args, **kwargs)
        peaks.append(peak_bytes(profiler))
        return result

    monkeypatch.setattr(engine.runner, "_model_forward", profiled)
    engine.measure(make_prompt((20, FRAMES_128, 20, (END_ID,), 19), {"focus": focus}))
    *chunks, last, _decode = peaks
    # A stage has at most eight layers, each with keys and values.
    of_row = COPIES_OF_ROWS * SIZES.hidden + 8 * 2 * SIZES.hidden * (focus == "conversation")
    prompt_tokens = len(chunks) * 512  # and a part of the last chunk
    size = engine.model.staged.buffer.hidden_BD.element_size()
    assert last - max(chunks) <= of_row * prompt_tokens * size


def peak_bytes(profiler: Any) -> int:
    """The highest sum of what was allocated and not freed."""
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def cost_of_128_frames(engine: StagedEngine) -> tuple[list[int], list[int]]:
    """Blocks by cache group in decoding, and the prefill's rows by layer."""
    return engine.measure(make_prompt((20, FRAMES_128, 40), {}))


def dense_cost(tokens: int) -> tuple[list[int], int]:
    """Rows by layer of a dense prefill, and its blocks, of BOUNDARIES[0] layers each, after it."""
    return [tokens] * LAYERS, LAYERS // BOUNDARIES[0] * -(-(tokens + 1) // BLOCK)


def layer_flops(n: int) -> int:
    """FLOPs of one prefill layer on n tokens: projections, attention, gated MLP."""
    return 2 * (n * D * (2 * D + 2 * D_KV) + 2 * n * n * D + 3 * n * D * D_MLP)
