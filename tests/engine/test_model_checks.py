"""Settings that a model family cannot honour are refused at start-up, with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import CUDAGraphMode

from metok_vllm.config import METokConfig
from metok_vllm.engine import config_hook, model_checks
from metok_vllm.engine.model_checks import check_model, check_stages
from metok_vllm.errors import ConfigError

QWEN3_VL = SimpleNamespace(
    model_type="qwen3_vl",
    vision_config=SimpleNamespace(
        patch_size=16,
        spatial_merge_size=2,
        temporal_patch_size=2,
        deepstack_visual_indexes=[8, 16, 24],
    ),
)
QWEN2_5_VL = SimpleNamespace(
    model_type="qwen2_5_vl",
    vision_config=SimpleNamespace(patch_size=14, spatial_merge_size=2, temporal_patch_size=2),
)


def check(
    values: dict[str, Any],
    model: Any = QWEN3_VL,
    *,
    pruning_rate: float | None = None,
    graphs: CUDAGraphMode | None = CUDAGraphMode.PIECEWISE,
    drafts: str | None = None,
) -> None:
    multimodal = SimpleNamespace(
        video_pruning_rate=pruning_rate,
        is_multimodal_pruning_enabled=lambda: pruning_rate is not None,
    )
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=model, multimodal_config=multimodal),
        compilation_config=SimpleNamespace(cudagraph_mode=graphs),
        speculative_config=None if drafts is None else SimpleNamespace(method=drafts),
    )
    check_model(METokConfig.from_dict(values), vllm_config)


@pytest.mark.parametrize(
    ("values", "said", "field"),
    [
        ({"strides": [3, 6, 8]}, "multiples of 2, .*got 3", "strides"),
        ({"strides": [2, 4, 9]}, "multiples of 2, .*got 9", "strides"),
        ({"presets": {"max": {"strides": [3, 6, 12]}}}, "multiples of 2, .*got 3", "strides"),
        (
            {"alignment_mode": "shared", "alignment_model": "a/siglip"},
            "qwen3_vl has none: use 'separate'",
            "alignment_mode",
        ),
        ({"pruning_layers": [2, 4, 6]}, "at layer 3 or later.*got .2, 4, 6", "pruning_layers"),
    ],
)
def test_settings(values: dict[str, Any], said: str, field: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({"strides": [2, 6, 16], "reduce": "resize"}, QWEN3_VL),
        ({"pruning_layers": [3, 4, 6]}, QWEN3_VL),
        # Without stages 2 and 3 boundaries are not read; without deepstack any will do.
        ({"pruning_layers": [1, 2, 4], "stages": [1]}, QWEN3_VL),
        ({"pruning_layers": [1, 2, 4]}, QWEN2_5_VL),
    ],
)
def test_what_fits(values: dict[str, Any], model: Any) -> None:
    check(values, model)


def test_vllm_s_own_pruning_of_videos() -> None:
    """Both choose tokens; METok's requests may name the same method."""
    with pytest.raises(ConfigError, match=r"--video-pruning-rate 0\.5 cannot be combined"):
        check({}, pruning_rate=0.5)


@pytest.mark.parametrize("mode", [CUDAGraphMode.FULL])
@pytest.mark.parametrize("stages", [[1], [1, 2, 3]])
def test_graphs_that_would_replay_positions(mode: CUDAGraphMode, stages: list[int]) -> None:
    with pytest.raises(ConfigError, match="FULL_AND_PIECEWISE, got FULL"):
        check({"stages": stages}, graphs=mode)


@pytest.mark.parametrize(
    "mode",
    [
        None,
        CUDAGraphMode.NONE,
        CUDAGraphMode.PIECEWISE,
        CUDAGraphMode.FULL_DECODE_ONLY,
        CUDAGraphMode.FULL_AND_PIECEWISE,
    ],
)
def test_graphs_that_do_not(mode: CUDAGraphMode | None) -> None:
    """Decoding steps have no tokens of videos."""
    check({}, graphs=mode)


@pytest.mark.parametrize(
    ("values", "newline", "said"),
    [
        ({"reduce": "resize"}, "one_token", "'resize' is not available"),
        ({"presets": {"max": {"reduce": "resize"}}}, "one_token", "'resize' is not available"),
        ({"reduce": "select"}, "grid", "a newline ends each row"),
    ],
)
def test_a_reduction_that_the_model_does_not_have(
    values: dict[str, Any], newline: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(values, llava(newline))
    assert caught.value.field == "reduce"
    check({"reduce": "select"}, llava("one_token"))


def llava(newline: str) -> Any:
    vision = SimpleNamespace(image_size=384, patch_size=14)
    return SimpleNamespace(
        model_type="llava_qwen", vision_config=vision, mm_newline_position=newline
    )


@pytest.mark.parametrize("method", ["mtp", "eagle3", "draft_model"])
def test_draft_models_where_videos_bring_positions(method: str) -> None:
    """They would read the channels of positions as features."""
    with pytest.raises(ConfigError, match=f"--speculative-config with method '{method}'"):
        check({"stages": [1]}, drafts=method)
    check({"stages": [1]}, drafts="ngram")
    check({"stages": [1]}, llava("grid"), drafts=method)


@pytest.mark.parametrize("stages", [[1, 2, 3], [2], [1, 3]])
def test_stages_that_need_tokens_are_refused_where_layers_hold_a_state(stages: list[int]) -> None:
    """Before anything else of the engine's configuration is looked at."""
    config = SimpleNamespace(
        additional_config={"metok": {"stages": stages}},
        parallel_config=SimpleNamespace(worker_extension_cls=""),
        model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type="qwen3_5")),
    )
    with pytest.raises(ConfigError, match="hold a state, not tokens") as caught:
        config_hook.enable(config)
    assert f"metok.stages {stages}" in str(caught.value)
    assert "--metok-stages '[1]'" in str(caught.value)


def test_stages_that_nobody_chose_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_checks.logger, "propagate", True)
    stage_1 = METokConfig(stages=(1,))
    check_stages(stage_1, "qwen3_5", given=True)
    check_stages(METokConfig(), "qwen3_vl", given=False)
    assert not caplog.records
    check_stages(stage_1, "qwen3_5", given=False)
    assert "stage 1 alone" in caplog.text
