"""Divergence, costs and curves on values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from metok_vllm.benchmarks.calibration.costs import StageCosts, costs, possible_layouts
from metok_vllm.benchmarks.calibration.curves import Curves
from metok_vllm.benchmarks.calibration.kl_to_dense import Divergence, compare, mean_divergence
from metok_vllm.benchmarks.calibration.measure import Sample
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.setting import Setting, plan_of
from metok_vllm.errors import ConfigError
from metok_vllm.plan.layers import MAX_WASTE_PERCENT, StageLayout
from tests.benchmarks.calibration.checkpoints import LAYERS


def test_divergence_by_hand() -> None:
    dense = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    pruned = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    found = compare(dense, pruned)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.kl == pytest.approx((expected, 0.0), abs=1e-7)
    assert found.agrees == (False, True)
    assert compare(dense, dense).kl == (0.0, 0.0)


def test_means_over_prompts_by_hand() -> None:
    one = compare(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5]]).log())
    uneven = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]).log()
    flipped = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]).log()
    far = 0.9 * math.log(9) + 0.1 * math.log(1 / 9)
    found = mean_divergence([one, compare(uneven, flipped)])
    assert found.first == pytest.approx(0, abs=1e-7)
    assert found.following == pytest.approx(far / 2, rel=1e-5)
    assert found.worst == found.following
    assert (found.agreement, found.same_answers) == (3 / 4, 1 / 2)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_numbers_that_overflow_are_no_divergence(broken: float, where: int) -> None:
    """max(0.01, nan) is 0.01: such a setting would be within every budget."""
    pair = [torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log() for _ in range(2)]
    pair[where][1, 0] = broken
    with pytest.raises(ConfigError, match=r"not finite.*use bfloat16 or float32") as caught:
        compare(*pair)
    assert caught.value.field == "dtype"


def test_the_least_layer_holds_to_the_end() -> None:
    """The budget must hold at the least layer and at every later one."""
    values = [0.9, 0.01, 0.3, 0.04, 0.05, 0.0]
    drop = {layer: Divergence(value, value / 2, 1.0, 1.0) for layer, value in enumerate(values)}
    curves = Curves(drop, drop, {}, {})
    assert [curves.least_layer(b) for b in (1.0, 0.05, 0.04, 0.0)] == [0, 3, 5, 5]
    drop[5] = Divergence(0.0, 0.2, 1.0, 1.0)
    assert curves.least_layer(0.1) is None


def test_layouts_are_those_that_the_engine_accepts() -> None:
    layouts = possible_layouts(28, least_p2=12, most_groups=12)
    assert (3, 10, 19) in {layout.boundaries for layout in layouts}
    for layout in layouts:
        assert StageLayout.of(layout.boundaries, 28) == layout
        assert layout.waste_percent <= MAX_WASTE_PERCENT
        assert layout.boundaries[2] >= 12
        assert layout.num_groups <= 12
    assert len(possible_layouts(28, 12, 28)) > len(layouts)
    with pytest.raises(ConfigError, match="at least 4 layers"):
        possible_layouts(3, 0, 12)


def test_ranking_and_report_count_the_same_flops(
    model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    setting = Setting((1, 2, 3), 0.76, 0.25)
    plans = [plan_of(setting, s.dense, model.config) for s in samples]
    of_stage = StageCosts(model.text_config, plans)
    dense = costs(model.text_config, None, plans, decoded=4)
    for layout in possible_layouts(LAYERS, 0, LAYERS):
        reported = costs(model.text_config, layout, plans, decoded=4)
        assert of_stage.flops(layout) == pytest.approx(reported.prefill_flops)
        assert reported.prefill_flops < dense.prefill_flops


def test_kv_bytes_by_hand(model: CalibratedModel, samples: Sequence[Sample]) -> None:
    """Blocks of 16 tokens, keys and values of two heads of 16 numbers, two bytes each."""
    prompt = samples[0].dense
    plan = plan_of(Setting((2, 4, 6), 0.76, 0.0), prompt, model.config)
    total, text = len(prompt) + 4, len(prompt) - prompt.tokens + 4
    a_token = 2 * 2 * 16 * 2
    held = costs(model.text_config, StageLayout((2, 4, 6), LAYERS), [plan], decoded=4).kv_bytes
    whole = costs(model.text_config, None, [plan], decoded=4).kv_bytes
    assert whole == LAYERS * 16 * math.ceil(total / 16) * a_token
    assert held == (2 * math.ceil(total / 16) + 6 * math.ceil(text / 16)) * 16 * a_token
