from __future__ import annotations

import importlib.metadata

from metok_vllm.server.environment import plugin_list, prepare


def test_unset_means_every_plugin_and_that_stays_so() -> None:
    names = plugin_list(None).split(",")
    general = {e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")}
    assert {*general, "metok", "metok_http"} <= set(names)
    assert len(names) == len(set(names))


def test_the_user_s_choice_is_kept_and_ours_added() -> None:
    assert plugin_list("mine") == "mine,metok,metok_http"
    assert plugin_list("") == "metok,metok_http"
    assert plugin_list("metok_http,metok") == "metok_http,metok"


def test_what_the_user_set_stays() -> None:
    environ = {"VLLM_MEDIA_CONNECTOR": "http", "VLLM_NO_USAGE_STATS": "0"}
    prepare(environ)
    assert environ["VLLM_MEDIA_CONNECTOR"] == "http"
    assert environ["VLLM_NO_USAGE_STATS"] == "0"
    assert environ["VLLM_VIDEO_LOADER_BACKEND"] == "metok"
    assert "metok_http" in environ["VLLM_PLUGINS"].split(",")
