"""METok's endpoint plugin in vLLM's app."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from metok_vllm.config import METokConfig
from metok_vllm.engine.config_hook import ARCHITECTURES
from metok_vllm.errors import (
    ConfigError,
)
from metok_vllm.server.api import endpoint
from metok_vllm.server.middleware.lifecycle import Lifecycle, Phase
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.server.api.apps import call, lifecycle


def test_vllm_accepts_it_as_a_plugin() -> None:
    assert isinstance(endpoint.MetokEndpoint(), EndpointPlugin)


def init(hf: dict[str, Any], additional_config: Any) -> Any:
    plugin = endpoint.MetokEndpoint()
    plugin.lifecycle = Lifecycle()
    plugin._app = app = FastAPI()
    model = SimpleNamespace(hf_config=SimpleNamespace(**hf), architecture="Qwen2ForCausalLM")
    config = SimpleNamespace(additional_config=additional_config, shutdown_timeout=1)
    client = SimpleNamespace(model_config=model, vllm_config=config, shutdown=None, errored=False)
    asyncio.run(plugin.init_state(client, app.state, None))
    return app.state


@pytest.mark.parametrize("settings", [{}, {"enabled": False}, {"preset": "max"}])
def test_a_model_that_metok_does_not_support_is_not_served(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        init({}, {"metok": settings})
    assert str(caught.value) == (
        f"METok does not support Qwen2ForCausalLM; supported: {', '.join(ARCHITECTURES)}"
    )


def test_any_model_is_served_without_metok() -> None:
    assert init({}, {"other": 1}).metok_config is None
    assert init({}, {}).metok_lifecycle.phase is Phase.SERVING


def test_the_settings_of_a_supported_model_are_known() -> None:
    settings = METokConfig(num_events=3).to_dict()
    assert init({"metok": settings}, {"metok": settings}).metok_config.num_events == 3


def test_a_built_middleware_stack_is_rebuilt() -> None:
    app = FastAPI()
    app.middleware_stack = app.build_middleware_stack()
    endpoint.install(app, lifecycle(), ServerSettings(max_body_bytes=5), MediaLimits())
    response = call(app, "POST", "/v1/chat/completions", json={"a": "too long"})
    assert response.status_code == 413
    assert json.loads(response.text)["error"]["message"]


@pytest.mark.parametrize("root", ["", "/", "/v", "/v/"])
def test_a_root_path_hides_no_route(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metok_vllm.server.api.connection.register", lambda settings: None)
    app = FastAPI(root_path=root)
    endpoint.MetokEndpoint().attach_router(app)
    app.state.metok_config = None
    for prefix in ("", root.rstrip("/")):
        for path in ("/", "/version"):
            assert call(app, "GET", prefix + path).status_code == 200


@pytest.mark.parametrize("on", [True, False])
def test_a_setting_switches_model_names_with_presets_off(on: bool) -> None:
    models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="m", model_path="p")])
    chat = SimpleNamespace(models=models)
    settings = ServerSettings.from_env({"METOK_SERVER_ALIASES": str(on)})
    aliases = endpoint.served_aliases(chat, settings, METokConfig())
    assert ("m:max" in aliases) is on
    assert endpoint.served_aliases(chat, settings, None).targets == {}
