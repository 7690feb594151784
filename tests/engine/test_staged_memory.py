"""Memory and work at LongVA-7B's geometry: 28 layers, 24 x 24 patches a frame, tiny widths.

Blocks come from the pool's books and rows from the layers themselves; FLOPs are those of
LongVA-7B's widths on these rows. The bounds are the figures of the paper's abstract.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.staged import StagedEngine
from tests.engine.staged_prompts import OFF, Clip, laid_out
from tests.reference.staged_checkpoint import (
    Sizes,
    language_model,
    load_model,
    write_checkpoint,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAYERS = 28
SIZES = Sizes(layers=LAYERS, hidden=32, heads=1, kv_heads=1, intermediate=32, image=192, patch=8)
# The paper's boundaries at multiples of four, so that no memory is wasted.
BOUNDARIES = (4, 12, 20)
# LongVA-7B: Qwen2-7B with 4 key-value heads of 128.
D, D_KV, D_MLP = 3584, 512, 18944
FEWER_BLOCKS, FEWER_FLOPS, MORE_REQUESTS = 0.935, 0.806, 8
MAX_LEN = 18944
# Blocks of all layers, in blocks of one: two dense requests of 64 frames, and some growth.
POOL = 28 * 600
SETTINGS: dict[str, Any] = {
    "max_model_len": MAX_LEN,
    "max_num_batched_tokens": MAX_LEN,
    "max_num_seqs": 64,
    # All requests are alike, and each shall need its own memory.
    "enable_prefix_caching": False,
    "limit_mm_per_prompt": {"image": 0, "video": 1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longva") / "model"
    write_checkpoint(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def dense_at_once(checkpoint: Path) -> int:
    """Requests of 64 frames that vLLM's own engine runs at once in the pool."""
    reference = language_model(load_model(checkpoint))
    blocks = POOL // LAYERS
    stock = StagedEngine(checkpoint, reference, None, num_gpu_blocks_override=blocks, **SETTINGS)
    (layers,) = [len(group.layer_names) for group in stock.runner.kv_cache_config.kv_cache_groups]
    assert layers == LAYERS
    running = at_once(stock)
    stock.stop()
    return running


@pytest.fixture(scope="module")
def engine(checkpoint: Path, dense_at_once: int) -> Iterator[StagedEngine]:
    """Started after the stock engine is gone: vLLM's engines of one process end together."""
    reference = language_model(load_model(checkpoint))
    blocks = POOL // BOUNDARIES[0]
    engine = StagedEngine(
        checkpoint, reference, BOUNDARIES, num_gpu_blocks_override=blocks, **SETTINGS
    )
    groups = engine.runner.kv_cache_config.kv_cache_groups
    assert [len(group.layer_names) for group in groups] == [BOUNDARIES[0]] * len(groups)
    yield engine
    engine.stop()


def at_once(engine: StagedEngine) -> int:
    """Requests of 64 frames, added one by one until one must wait or is preempted."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True, detokenize=False)
    prompt = laid_out((20, Clip(7, (64,)), 40))
    running = 0
    while True:
        engine.llm.llm_engine.add_request(str(running), prompt, params)
        for _ in range(3):
            engine.llm.llm_engine.step()
        engine.check_books()
        requests = list(engine.scheduler.requests.values())
        if len(engine.scheduler.running) < len(requests):
            break
        assert not any(request.num_preemptions for request in requests)
        running = len(requests)
    engine.llm.llm_engine.abort_request([str(number) for number in range(running + 1)])
    assert engine.pool.get_num_free_blocks() == engine.pool.num_gpu_blocks - 1
    return running


def test_requests_at_once_in_one_pool(engine: StagedEngine, dense_at_once: int) -> None:
    assert dense_at_once == 2
    assert at_once(engine) >= MORE_REQUESTS * dense_at_once


def test_blocks_and_flops_of_128_frames(engine: StagedEngine) -> None:
    blocks, flops = {}, {}
    for name, options in (("metok", {}), ("dense", OFF)):
        blocks[name], rows = measure(engine, options)
        assert len(rows) == LAYERS
        flops[name] = sum(layer_flops(n) for n in rows)
    assert 1 - blocks["metok"] / blocks["dense"] >= FEWER_BLOCKS
    assert 1 - flops["metok"] / flops["dense"] >= FEWER_FLOPS


def measure(engine: StagedEngine, options: dict[str, Any]) -> tuple[int, list[int]]:
    """Blocks held when decoding has begun, times layers, and each layer's rows in the prefill."""
    from vllm import SamplingParams

    rows: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _module, args: rows.append(len(args[1])))
        for layer in engine.model.language_model.model.layers
    ]
    prompt = laid_out((20, Clip(8, (30, 50, 8, 25, 15)), 40), options)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)
    engine.llm.llm_engine.add_request("one", prompt, params)
    engine.llm.llm_engine.step()
    for hook in hooks:
        hook.remove()
    engine.llm.llm_engine.step()
    engine.check_books()
    (held,) = engine.held().values()
    engine.llm.llm_engine.abort_request(["one"])
    return sum(held) * BOUNDARIES[0], rows


def layer_flops(n: int) -> int:
    """FLOPs of one prefill layer on n tokens: projections, attention, gated MLP."""
    return 2 * (n * D * (2 * D + 2 * D_KV) + 2 * n * n * D + 3 * n * D * D_MLP)
