"""Rivals hold what METok holds by the engine's own arithmetic, within a token for each layer."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metok_vllm.benchmarks.quality.frontier import (
    TARGETS,
    frontier,
    held_tokens,
    methods,
    rivals,
    solve_fastv,
    solve_frame_dropping,
    solve_token_rule,
)
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.questions.settings import Setting, request_config
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import ENCODER_RULES
from metok_vllm.plan.families import video_layout
from tests.layouts import QWEN3_VL, square

SERVER = METokConfig()
frame_counts = st.integers(1, 256)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    llava = partial(square, grid=draw(st.integers(2, 27)))
    size = draw(st.tuples(st.integers(32, 448), st.integers(32, 800)))
    qwen = partial(video_layout, QWEN3_VL, size=size)
    return Geometry(draw(st.integers(4, 40)), 2, 32, 4, draw(st.sampled_from([llava, qwen])))


@st.composite
def metok_settings(draw: st.DrawFn) -> Setting:
    request = {
        "num_events": draw(st.integers(1, 9)),
        "keep_ratio": draw(st.sampled_from([0.3, 0.5, 0.76, 1.0])),
        "decode_keep": draw(st.sampled_from([0.0, 0.1, 0.25, 1.0])),
    }
    return Setting("METok", "METok", request)


def held(setting: Setting, frames: int, geometry: Geometry) -> int:
    return held_tokens(request_config(SERVER, setting), frames, geometry)


@settings(deadline=None)
@given(metok_settings(), frame_counts, geometries(), st.sampled_from(ENCODER_RULES))
def test_token_rules(metok: Setting, frames: int, geometry: Geometry, rule: str) -> None:
    target = held(metok, frames, geometry)
    solved = solve_token_rule(target, frames, geometry)
    request = {"rule": rule, "rule_keep": solved.share}
    assert held(Setting("x", rule, request), frames, geometry) == solved.token_layers
    # A token rule holds at least one visual token, the newline and text inside the video.
    video = geometry.video(frames)
    least = geometry.layers * (1 + video.closes_events + video.separators)
    most = geometry.layers * video.dense_tokens()
    assert abs(solved.token_layers - min(max(target, least), most)) <= geometry.layers / 2


@settings(deadline=None)
@given(metok_settings(), frame_counts, geometries())
def test_fastv(metok: Setting, frames: int, geometry: Geometry) -> None:
    target = held(metok, frames, geometry)
    first = geometry.layout(None).boundaries[0]
    solved = solve_fastv(target, frames, geometry, None)
    below = first * geometry.video(frames).dense_tokens()
    deeper = geometry.layers - first
    if solved is None:
        assert target < below + deeper * (1 + geometry.video(frames).separators)
        return
    request = {"rule": "fastv", "rule_keep": solved.share}
    assert held(Setting("x", "FastV", request), frames, geometry) == solved.token_layers
    most = geometry.layers * geometry.video(frames).dense_tokens()
    assert abs(solved.token_layers - min(target, most)) <= deeper / 2


@settings(deadline=None)
@given(metok_settings(), frame_counts, geometries())
def test_fewer_frames(metok: Setting, frames: int, geometry: Geometry) -> None:
    target = held(metok, frames, geometry)
    solved = solve_frame_dropping(target, frames, geometry)
    kept = Setting("x", "fewer", {"enabled": False}, solved.share).frames(frames, frames)
    assert solved.token_layers == geometry.layers * geometry.video(kept).dense_tokens()
    video = geometry.video(kept)
    if 1 < video.frames < geometry.video(frames).frames:
        # One frame of the layout: the text in front of a later one may be longer.
        each = -(-video.dense_tokens() // video.frames) + 1
        assert abs(solved.token_layers - target) <= geometry.layers * each / 2


@pytest.mark.parametrize("frames", [2, 16, 64, 128])
def test_every_setting_of_the_frontier_is_one_that_a_server_takes(frames: int) -> None:
    geometry = Geometry(12, 2, 32, 4, partial(square, grid=8))
    found = frontier(frames, geometry)
    for setting in found:
        request_config(SERVER, setting)  # raises what the server would answer with 400
    assert found[0].is_dense
    lines = {setting.line for setting in found}
    assert lines >= {"METok", "METok's stages", "random", "VidCom2", "V-CAST", "FastV"}
    assert "fewer frames" in lines
    assert ("EVS" in lines) is (frames > 2)  # of two frames METok holds less than one
    for target in TARGETS:
        rivals_of = {setting.name for setting in found if setting.equal_to == target}
        assert f"{target}, select" in rivals_of
        always = ("random", "VidCom2", "V-CAST", "fewer frames")
        assert {f"{rule} = {target}" for rule in always} <= rivals_of


def test_the_servers_own_settings_are_a_target() -> None:
    geometry = Geometry(12, 2, 32, 4, partial(square, grid=8))
    own = METokConfig(pruning_layers=(4, 8, 10), keep_ratio=0.9, decode_keep=0.5)
    found = {setting.name: setting for setting in frontier(64, geometry, own, own=True)}
    served = found["as served"]
    assert served.request is None
    rival = request_config(own, found["EVS = as served"])
    target = held_tokens(request_config(own, served), 64, geometry)
    assert abs(held_tokens(rival, 64, geometry) - target) <= geometry.layers / 2


def test_fastv_is_left_out_where_its_first_layers_hold_too_much() -> None:
    geometry = Geometry(12, 2, 32, 4, partial(square, grid=8))
    target = held(Setting("max", "METok", {"preset": "max"}), 64, geometry)
    names = [setting.name for setting in rivals(target, "max", 64, geometry, SERVER)]
    others = ("random", "EVS", "VidCom2", "V-CAST", "fewer frames")
    assert names == [f"{name} = max" for name in others]


@pytest.mark.parametrize("frames", [2, 64])
def test_methods_hold_what_the_preset_holds(frames: int) -> None:
    """Qwen's family has all reductions; each method holds the preset's tokens within a token a
    layer."""
    geometry = Geometry(12, 2, 32, 4, partial(video_layout, QWEN3_VL))
    base = METokConfig.load({}, environ={}, family="qwen3_vl")
    found = {setting.name: setting for setting in methods(frames, geometry, base)}
    assert {"dense", "balanced", "balanced, select", "balanced, resize"} <= set(found)
    held = {
        name: held_tokens(request_config(base, setting), frames, geometry)
        for name, setting in found.items()
        if name != "dense"
    }
    assert held["balanced, select"] == held["balanced, resize"] == held["balanced"]
    rules = [name for name in held if name.endswith("= balanced")]
    assert len(rules) >= 3
    for name in rules:
        assert abs(held[name] - held["balanced"]) <= geometry.layers / 2 or frames == 2, name
