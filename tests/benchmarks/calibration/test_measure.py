"""Divergence on videos that the search did not see, and settings with the served layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metok_vllm.benchmarks.calibration.curves import Curves
from metok_vllm.benchmarks.calibration.kl_to_dense import Divergence
from metok_vllm.benchmarks.calibration.measure import DENSE, STAGE1, Measured, Meter, Sample
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.output import write_yaml
from metok_vllm.benchmarks.calibration.prompts import find_questions
from metok_vllm.benchmarks.calibration.report import choices_table
from metok_vllm.benchmarks.calibration.run import Calibration, calibrate
from metok_vllm.benchmarks.calibration.search import Search
from metok_vllm.benchmarks.calibration.setting import Setting
from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import StageLayout
from tests.benchmarks.calibration.checkpoints import LAYERS
from tests.benchmarks.calibration.conftest import FRAMES, TOKENS

NOTHING = Divergence(0.0, 0.0, 1.0, 1.0)
MUCH = Divergence(0.5, 0.25, 1.0, 1.0)


class FixedMeter(Meter):
    """Returns fixed values: with stage 1, a decode_keep below 0.5 exceeds the budget."""

    def measure(
        self, settings: Sequence[Setting], title: str, stages: tuple[int, ...] = DENSE
    ) -> list[Divergence]:
        def moved(setting: Setting) -> Divergence:
            assert setting.decode_keep is not None
            return MUCH if stages == STAGE1 and setting.decode_keep < 0.5 else NOTHING

        return [moved(setting) for setting in settings]


def test_presets_are_within_budget_with_stage_1_if_it_is_served(
    model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    meter = FixedMeter(model, samples, lambda _: None)
    flat = dict.fromkeys(range(LAYERS), NOTHING)
    curves = Curves(flat, flat, {0.6: flat}, {0.6: flat})
    layout = StageLayout((2, 4, 6), LAYERS)
    search = Search(meter, curves, (0.6,), (0.0, 0.25, 0.5), LAYERS)
    without, with_stage1 = (search.find_at(layout, 0.1, stages) for stages in ([2, 3], [1, 2, 3]))
    assert without is not None
    assert with_stage1 is not None
    assert (without.decode_keep, with_stage1.decode_keep) == (0.0, 0.5)
    fewer = Search(meter, curves, (0.6,), (0.0, 0.25), LAYERS)
    assert fewer.find_at(layout, 0.1, [2, 3]) == without
    assert fewer.find_at(layout, 0.1, [1, 2, 3]) is None
    assert fewer.find_at(layout, 0.5, [1, 2, 3]) == without


def test_the_choice_is_measured_on_videos_outside_the_search(
    found: Calibration, model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    assert found.held_out is not None
    assert (found.prompts, found.held_out.videos, found.held_out.prompts) == (1, 1, 1)
    choice = found.choices["balanced"]
    assert choice is not None
    searched, held = (Meter(model, [sample], lambda _: None) for sample in samples)
    assert searched.measure([choice.setting], "test") == [choice.divergence]
    expected = held.measured(choice.setting, STAGE1, "test")
    assert found.held_out.choices["balanced"] == expected
    assert expected.without_stage1 != choice.divergence
    assert expected.with_stage1 not in (None, expected.without_stage1)
    preset = found.to_dict()["presets"]["balanced"]
    assert preset["held_out"] == expected.to_dict()
    assert preset["held_out"]["divergence"]["first"] == expected.without_stage1.first
    labels = list(choices_table(found.to_dict()).columns[0].cells)
    assert labels[-4:-1] == ["  and stage 1", "  held out", "  held out, stage 1"]


def test_the_yaml_has_the_presets_within_their_budgets(found: Calibration, tmp_path: Path) -> None:
    served = write_yaml(tmp_path / "metok.yaml", found, "balanced")
    assert served.stages == (1, 2, 3)
    assert served.presets is not None
    assert list(served.presets) == ["balanced", "max"]
    assert served.for_request({"preset": "balanced"}).decode_keep == served.decode_keep
    text = (tmp_path / "metok.yaml").read_text()
    assert found.held_out is not None
    first = found.held_out.choices["balanced"].without_stage1.first
    assert f"videos that the search did not see: {first:.4g} and " in text
    assert "#   quality: left out" in text
    assert "OVER" not in text


def test_a_setting_over_its_budget_is_reported(found: Calibration, tmp_path: Path) -> None:
    assert found.held_out is not None
    assert found.held_out.over_budget(found.budgets) == []
    held = found.held_out.choices["balanced"]
    for one in (Measured(held.setting, MUCH, None), Measured(held.setting, NOTHING, MUCH)):
        assert one.worst == 0.5
        both = {"balanced": one}
        worse = replace(found.held_out, choices=both, served_presets=both)
        (sentence,) = worse.over_budget({"balanced": 0.4})
        assert sentence.startswith(
            "balanced: 0.5 nats on the held-out videos, over the budget of 0.4"
        )
        assert worse.over_budget({"balanced": 0.5}) == []
    other = replace(worse, choices={}, served_presets={"max": one})
    assert other.over_budget({"max": 0.4})[0].startswith(
        "max with the layers that are served: 0.5 nats"
    )
    tight = {**found.budgets, "balanced": held.worst * 0.999}
    write_yaml(tmp_path / "metok.yaml", replace(found, budgets=tight), "balanced")
    assert "which is OVER the budget" in (tmp_path / "metok.yaml").read_text()


def test_one_video_holds_nothing_out(model: CalibratedModel, videos: Path, tmp_path: Path) -> None:
    questions = find_questions(videos, None, 1, 2, FRAMES)
    found = calibrate(
        *(model, questions, {"balanced": 10.0}, TOKENS, lambda _: None),
        keep_ratios=(0.6,),
        decode_keeps=(0.0,),
        served="balanced",
    )
    assert (found.held_out, found.prompts) == (None, 2)
    assert found.to_dict()["presets"]["balanced"]["held_out"] is None
    served = write_yaml(tmp_path / "metok.yaml", found, "balanced")
    assert "Nothing was held out" in (tmp_path / "metok.yaml").read_text()
    assert METokConfig.load(config_file=tmp_path / "metok.yaml", environ={}) == served
