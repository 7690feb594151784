"""METok's own routes: readiness and version."""

from __future__ import annotations

from metok_vllm.config import METokConfig
from tests.server.api.apps import app_with, call, engine, lifecycle


class TestReady:
    def test_serving(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(), engine_client=engine())
        assert call(app, "GET", "/health/ready").status_code == 200

    def test_loading(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(serving=False), engine_client=engine())
        response = call(app, "GET", "/health/ready")
        assert response.status_code == 503
        assert "loading" in response.json()["error"]["message"]

    def test_draining(self) -> None:
        cycle = lifecycle()
        cycle.drain(0)
        app = app_with(metok_lifecycle=cycle, engine_client=engine())
        response = call(app, "GET", "/health/ready")
        assert response.status_code == 503
        assert "retry-after" in response.headers

    def test_a_dead_engine(self) -> None:
        app = app_with(metok_lifecycle=lifecycle(), engine_client=engine(dead=True))
        assert call(app, "GET", "/health/ready").status_code == 503


def test_the_version_names_both_and_hides_paths() -> None:
    config = METokConfig(alignment_model="/some/where")
    response = call(app_with(metok_lifecycle=lifecycle(), metok_config=config), "GET", "/version")
    content = response.json()
    assert set(content) == {"version", "metok", "metok_config"}
    assert content["metok_config"]["num_events"] == config.num_events
    assert "/some/where" not in response.text
