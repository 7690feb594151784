"""StageLayout: boundaries that fit, and groups as vLLM really makes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.errors import ConfigError
from metok_vllm.plan.layers import (
    NUM_STAGES,
    PAPER_BOUNDARIES,
    PAPER_LAYERS,
    StageLayout,
    default_boundaries,
)

EVERY_SIZE = range(NUM_STAGES, 101)
# Boundaries and layers; what vLLM makes of the paper's own is noted in engine-findings.
LAYOUTS = [
    ((3, 10, 19), 28),
    ((4, 12, 20), 28),
    ((7, 14, 21), 28),
    ((2, 4, 6), 8),
    ((1, 2, 3), 4),
    ((2, 3, 6), 8),
    ((2, 5, 7), 9),  # 2, 3, 2 and 2: the largest is not below one and a half of the least
    ((4, 9, 13), 17),  # 4, 5, 4 and 4: it is
    ((1, 2, 7), 30),
]


@pytest.mark.parametrize("num_layers", EVERY_SIZE)
def test_the_default_fits_every_decoder(num_layers: int) -> None:
    layout = StageLayout.of(None, num_layers)
    p0, p1, p2 = layout.boundaries
    assert 0 < p0 < p1 < p2 < num_layers
    assert layout.waste_percent <= 11
    assert sum(layout.stage_sizes) == num_layers
    assert StageLayout.of(layout.boundaries, num_layers) == layout


@pytest.mark.parametrize("num_layers", range(18, 101))
def test_the_default_is_where_the_paper_prunes(num_layers: int) -> None:
    layout = StageLayout.of(None, num_layers)
    for boundary, papers in zip(layout.boundaries, PAPER_BOUNDARIES, strict=True):
        assert abs(boundary - papers * num_layers / PAPER_LAYERS) <= 0.6 * layout.boundaries[0]


def test_sizes_that_models_have() -> None:
    assert {n: default_boundaries(n) for n in (24, 28, 36)} == {
        24: (4, 8, 16),
        28: (4, 12, 20),
        36: (6, 12, 24),
    }
    assert all(StageLayout.of(None, n).waste_percent == 0 for n in (24, 28, 36, 64, 80))


@given(st.integers(4, 100), st.data())
def test_layers_stages_and_groups_agree(num_layers: int, data: st.DataObject) -> None:
    cut = st.integers(1, num_layers - 1)
    p0, p1, p2 = sorted(data.draw(st.sets(cut, min_size=3, max_size=3)))
    layout = StageLayout((p0, p1, p2), num_layers)
    of_layer = [layout.stage_of_layer(layer) for layer in range(num_layers)]
    assert of_layer == sorted(of_layer)
    assert tuple(of_layer.count(stage) for stage in range(NUM_STAGES)) == layout.stage_sizes
    room = [groups * layout.layers_per_group for groups in layout.groups_of_stage]
    assert all(r >= size for r, size in zip(room, layout.stage_sizes, strict=True))
    assert layout.waste_percent == pytest.approx(100 * (sum(room) - num_layers) / num_layers)


@pytest.mark.parametrize("memory", ["LBHNC", "BLNHC"])
@pytest.mark.parametrize(("boundaries", "num_layers"), LAYOUTS)
def test_groups_are_those_that_vllm_makes(
    boundaries: tuple[int, int, int], num_layers: int, memory: str
) -> None:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_utils import get_kv_cache_groups

    from metok_vllm.engine.kv_cache.evictor import register
    from metok_vllm.engine.kv_cache.spec import StageSpec

    register()
    layout = StageLayout(boundaries, num_layers)
    specs = {
        f"layers.{n}": StageSpec(
            block_size=16,
            num_kv_heads=2,
            head_size=8,
            dtype=torch.float32,
            stage=layout.stage_of_layer(n),
        )
        for n in range(num_layers)
    }
    config = VllmConfig()
    config.cache_config.kv_cache_layout = memory
    groups = get_kv_cache_groups(config, specs)
    stages = [group.kv_cache_spec.stage for group in groups]
    assert tuple(stages.count(stage) for stage in range(NUM_STAGES)) == layout.groups_of_stage
    assert max(len(group.layer_names) for group in groups) == layout.layers_per_group
    named = sorted(name for group in groups for name in group.layer_names)
    assert named == sorted(specs), "every layer is in one group"
    for group in groups:
        layers = [int(name.removeprefix("layers.")) for name in group.layer_names]
        assert {layout.stage_of_layer(n) for n in layers} == {group.kv_cache_spec.stage}


def test_too_few_layers() -> None:
    with pytest.raises(ConfigError, match=r"at least 4 layers; this one has 3: use stages \[1\]"):
        StageLayout.of(None, NUM_STAGES - 1)


def test_boundaries_beyond_the_decoder() -> None:
    with pytest.raises(ConfigError, match=r"below the decoder's 28 layers, got \[4, 12, 28\]"):
        StageLayout.of((4, 12, 28), 28)


def test_wasteful_boundaries_are_refused_with_ones_that_fit() -> None:
    # Stages of 20, 30, 21 and 21 layers: groups of 20, and seven of them for 92 layers.
    with pytest.raises(ConfigError, match="would waste 52 % of the KV cache") as caught:
        StageLayout.of((20, 50, 71), 92)
    assert str(list(default_boundaries(92))) in str(caught.value)
    # Stages of 10, 3, 4 and 11 layers: groups of 3, and eleven of them for 28 layers.
    assert StageLayout.of((10, 13, 17), 28).waste_percent == pytest.approx(100 * 5 / 28)
