"""Settings at equal KV: the checks of videos and servers, and the gaps of the held tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.quality.command import read_cells
from metok_vllm.benchmarks.quality.frontier import frontier
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import Answered, Cell
from metok_vllm.benchmarks.quality.kv_gaps import Gap, check_layers, gaps, largest
from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.questions.prompts import ALL, read_folder
from metok_vllm.benchmarks.questions.settings import (
    AS_SERVED,
    DENSE,
    Setting,
    for_server,
    pooling,
    presets,
    request_config,
)
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from tests.benchmarks.quality.canned import GEOMETRY, write_folder
from tests.layouts import square

MAX = Setting("max", "METok", {"preset": "max"})
RIVALS = (
    Setting("EVS = max", "EVS", {"rule": "evs"}, equal_to="max"),
    Setting("random = max", "random", {"rule": "random"}, equal_to="max"),
    Setting("FastV = max", "FastV", {"rule": "fastv"}, equal_to="max"),
)


def held(setting: str, tokens: float | None, kind: str = ALL) -> Row:
    unknown = ("chance", "accuracy", "difference", "agreement", "kl", "kv_bytes", "kv_share")
    figures: dict[str, Any] = dict.fromkeys((*unknown, "flops", "flops_share"))
    counts: dict[str, Any] = {"videos": 1, "questions": 1, "failed": 0, "lessened": 0}
    return Row(setting, "x", 8, kind, kv_tokens=tokens, **counts, **figures)


def test_videos_that_are_too_short_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2, [{"question": "?"}])  # of eight frames
    for frames in (4, 8):
        read_cells([folder], [frames], lambda count: frontier(count, GEOMETRY))
    with pytest.raises(ConfigError, match=r"0\.mp4 has 8 frames and --frames is 9"):
        read_cells([folder], [9], lambda count: frontier(count, GEOMETRY))
    # Settings without a target accept shorter videos.
    read_cells([folder], [9], lambda count: presets(["max"]))


def test_gaps_are_those_of_the_tokens_that_were_held(tmp_path: Path) -> None:
    questions = tuple(read_folder(write_folder(tmp_path, 1, [{"question": "?"}]), 8))
    cells = [Cell(8, questions, (DENSE, MAX, *RIVALS))]
    found = [
        held("max", 1000.0),
        held("max", 4.0, "count"),
        held("EVS = max", 1010.0),
        held("random = max", 950.0),
        held("FastV = max", None),  # every question failed
    ]
    made = gaps(found, cells)
    assert [(gap.setting, gap.target) for gap in made] == [
        *(("EVS = max", "max"), ("random = max", "max"))
    ]
    assert [gap.gap for gap in made] == pytest.approx([0.01, -0.05])
    worst = largest(made)
    assert worst is made[1]
    assert str(worst) == "8 frames, random = max: held 5.0 % fewer tokens than max"
    assert largest([]) is None
    assert "1.0 % more tokens" in str(Gap(8, "x", "y", 0.01))


def test_a_server_that_prunes_elsewhere_is_refused() -> None:
    def answer(layers: tuple[int, ...] | None, error: str | None = None) -> list[Answered]:
        place = ("max", 8, 0, "0.mp4", "question", "", error)
        return [Answered(*place, pruning_layers=layers)]

    own = METokConfig(pruning_layers=(4, 8, 10))
    check_layers(answer((4, 8, 10)), own, GEOMETRY)
    check_layers(answer(None, "503: draining"), own, GEOMETRY)
    default = GEOMETRY.layout(None).boundaries
    check_layers(answer(default), METokConfig(), GEOMETRY)
    check_layers(answer(None), METokConfig(stages=(1,)), GEOMETRY)
    with pytest.raises(ConfigError, match=r"at layers \[2, 4, 8\], .* for \[4, 8, 10\]"):
        check_layers(answer((2, 4, 8)), own, GEOMETRY)
    with pytest.raises(ConfigError, match="at layers none"):
        check_layers(answer(None), METokConfig(), GEOMETRY)


def test_what_a_server_would_refuse_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    one_stage = METokConfig(stages=(1,))
    keep = Setting("keep", "METok", {"decode_keep": 0.5})
    rival = Setting("random = keep", "random", {"rule": "random"}, equal_to="keep")
    found = for_server([DENSE, rival, keep, MAX, RIVALS[2]], one_stage, own=True)
    assert found == [DENSE, MAX, AS_SERVED]
    lines = capsys.readouterr().err.splitlines()
    assert "keep is left out, the server would refuse it: metok.decode_keep needs" in lines[0]
    assert "FastV = max is left out, the server would refuse it" in lines[1]
    assert "random = keep is left out, there is no keep to be equal to" in lines[2]
    names = {s.name for s in frontier(8, GEOMETRY, one_stage)}
    assert {"max", "stage 1", "random = max", "pool 4"} <= names
    assert not names & {"stage 2", "stages 1+2", "FastV 0.5"}
    # All settings are sent to a server with an unknown configuration.
    assert for_server([DENSE, keep], None, own=False) == [DENSE, keep]


def test_rivals_follow_a_servers_own_presets() -> None:
    own = METokConfig(
        presets={"max": {"keep_ratio": 0.3, "key_event_ratio": 0.4, "key_frames_per_event": 1}}
    )
    shares = []
    for base in (METokConfig(), own):
        found = {s.name: s for s in frontier(64, GEOMETRY, base)}
        shares.append((found["random = max"].request or {})["rule_keep"])
        shares.append((found["random = quality"].request or {})["rule_keep"])
    assert shares[2] < shares[0]
    assert shares[3] == shares[1]
    assert request_config(own, MAX).keep_ratio == 0.3


def test_rivals_work_on_a_server_that_is_off_or_has_another_rule() -> None:
    for base in (METokConfig(enabled=False), METokConfig(rule="evs"), METokConfig(preset="off")):
        wanted = request_config(METokConfig(), pooling(4))
        pooled = request_config(base, pooling(4))
        assert (pooled.enabled, pooled.rule, pooled.strides) == (True, "metok", wanted.strides)
        for setting in frontier(8, Geometry(12, 2, 32, 4, partial(square, grid=8)), base):
            if setting.line in ("random", "EVS", "VidCom2", "V-CAST", "FastV"):
                config = request_config(base, setting)
                assert config.enabled
                assert config.rule != "metok"
