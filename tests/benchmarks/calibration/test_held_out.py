"""Figures of videos that the search did not see, and settings beside the one that is served."""

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


class ToldMeter(Meter):
    """Measures what it is told: behind stage 1 less than half of the tokens is too little."""

    def measure(
        self, settings: Sequence[Setting], what: str, stages: tuple[int, ...] = DENSE
    ) -> list[Divergence]:
        def moved(setting: Setting) -> Divergence:
            assert setting.decode_keep is not None
            return MUCH if stages == STAGE1 and setting.decode_keep < 0.5 else NOTHING

        return [moved(setting) for setting in settings]


def test_a_setting_beside_holds_with_stage_1_where_that_is_served(
    model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    meter = ToldMeter(model, samples, lambda _: None)
    flat = dict.fromkeys(range(LAYERS), NOTHING)
    curves = Curves(flat, flat, {0.6: flat}, {0.6: flat})
    layout = StageLayout((2, 4, 6), LAYERS)
    search = Search(meter, curves, (0.6,), (0.0, 0.25, 0.5), LAYERS)
    without, behind = (search.find_at(layout, 0.1, stages) for stages in ([2, 3], [1, 2, 3]))
    assert without is not None
    assert behind is not None
    assert (without.decode_keep, behind.decode_keep) == (0.0, 0.5)
    fewer = Search(meter, curves, (0.6,), (0.0, 0.25), LAYERS)
    assert fewer.find_at(layout, 0.1, [2, 3]) == without
    assert fewer.find_at(layout, 0.1, [1, 2, 3]) is None
    assert fewer.find_at(layout, 0.5, [1, 2, 3]) == without


def test_the_search_sees_one_half_and_the_choice_is_measured_on_the_other(
    found: Calibration, model: CalibratedModel, samples: Sequence[Sample]
) -> None:
    assert found.held_out is not None
    assert (found.prompts, found.held_out.videos, found.held_out.prompts) == (1, 1, 1)
    choice = found.choices["balanced"]
    assert choice is not None
    seen, held = (Meter(model, [sample], lambda _: None) for sample in samples)
    assert seen.measure([choice.setting], "test") == [choice.divergence]
    expected = held.measured(choice.setting, STAGE1, "test")
    assert found.held_out.choices["balanced"] == expected
    assert expected.without != choice.divergence
    assert expected.behind not in (None, expected.without)
    preset = found.to_dict()["presets"]["balanced"]
    assert preset["held_out"] == expected.to_dict()
    assert preset["held_out"]["divergence"]["first"] == expected.without.first
    labels = list(choices_table(found.to_dict()).columns[0].cells)
    assert labels[-4:-1] == ["  and stage 1", "  held out", "  held out, stage 1"]


def test_the_yaml_says_what_was_held_out_and_what_was_left_out(
    found: Calibration, tmp_path: Path
) -> None:
    served = write_yaml(tmp_path / "metok.yaml", found, "balanced")
    assert served.stages == (1, 2, 3)
    assert served.presets is not None
    assert list(served.presets) == ["balanced", "max"]
    assert served.for_request({"preset": "balanced"}).decode_keep == served.decode_keep
    text = (tmp_path / "metok.yaml").read_text()
    assert found.held_out is not None
    held = found.held_out.choices["balanced"]
    assert held.behind is not None
    figures = f"{held.without.first:.4g} and {held.without.following:.4g} (stage 1 off), "
    figures += f"{held.behind.first:.4g} and {held.behind.following:.4g} (with stage 1)"
    assert f"# Held out, 1 prompts of 1 videos that the search did not see: {figures}." in text
    assert "each is within its budget with stage 1 and without it:" in text
    assert f"#   balanced 10: {_searched(found.beside['balanced'])}; held out {figures}" in text
    assert "#   quality: left out" in text
    assert "OVER" not in text


def _searched(found: Measured) -> str:
    assert found.behind is not None
    return (
        f"{found.without.first:.4g} and {found.without.following:.4g} (stage 1 off), "
        f"{found.behind.first:.4g} and {found.behind.following:.4g} (with stage 1)"
    )


def test_a_figure_over_the_budget_is_said(found: Calibration, tmp_path: Path) -> None:
    assert found.held_out is not None
    assert found.held_out.over_budget(found.budgets) == []
    held = found.held_out.choices["balanced"]
    for one in (Measured(held.setting, MUCH, None), Measured(held.setting, NOTHING, MUCH)):
        assert one.worst == 0.5
        worse = replace(found.held_out, choices={"balanced": one}, beside={"balanced": one})
        (said,) = worse.over({"balanced": 0.4})
        assert said.startswith("balanced: 0.5 nats on the held-out videos, over the budget of 0.4")
        assert worse.over({"balanced": 0.5}) == []
    other = replace(worse, choices={}, beside={"max": one})
    assert other.over({"max": 0.4})[0].startswith("max with the layers that are served: 0.5 nats")
    tight = {**found.budgets, "balanced": held.worst * 0.999}
    write_yaml(tmp_path / "metok.yaml", replace(found, budgets=tight), "balanced")
    assert "which is OVER the budget" in (tmp_path / "metok.yaml").read_text()


def test_one_video_holds_nothing_out(model: CalibratedModel, videos: Path, tmp_path: Path) -> None:
    asks = find_questions(videos, None, num_videos=1, questions_per_video=2)
    found = calibrate(
        *(model, asks, {"balanced": 10.0}, FRAMES, TOKENS, lambda _: None),
        keep_ratios=(0.6,),
        decode_keeps=(0.0,),
        served="balanced",
    )
    assert (found.held_out, found.prompts) == (None, 2)
    assert found.to_dict()["presets"]["balanced"]["held_out"] is None
    served = write_yaml(tmp_path / "metok.yaml", found, "balanced")
    assert "Nothing was held out" in (tmp_path / "metok.yaml").read_text()
    assert METokConfig.load(config_file=tmp_path / "metok.yaml", environ={}) == served
