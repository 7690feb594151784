"""The block evictor's state at /metrics and /metok/books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY, generate_latest
from vllm import envs
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.config import METokConfig
from metok_vllm.server.api import endpoint
from metok_vllm.server.api.routes import router
from metok_vllm.server.middleware import evictor_state
from metok_vllm.server.middleware.evictor_state import EvictorStates, is_scrape
from metok_vllm.server.middleware.lifecycle import Lifecycle
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.server.http_servers import http_scope


def state_of(freed: int, **blocks: list[int]) -> dict[str, Any]:
    """A worker's answer; requests whose id begins with "metok" are METok's."""
    requests = {
        name: {"metok": name.startswith("metok"), "tokens": 90, "blocks": held}
        for name, held in blocks.items()
    }
    return {
        "total_blocks": 100,
        "free_blocks": 60,
        "freed_blocks": freed,
        "prefix_records": 2,
        "stage_of_group": [0, 1],
        "requests": requests,
    }


class Engines:
    """vLLM's engine client: `answers` holds one list per engine, one answer per worker."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers: list[list[Any]] | Exception = list(answers)
        self.free = asyncio.Event()
        self.free.set()
        self.calls = 0
        self.engine_core = self

    async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
        assert call == ("collective_rpc", "metok_evictor_state", None, (), None)
        self.calls += 1
        await self.free.wait()
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def app_for(engines: Engines | None, key: str | None = None) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    app.state.metok_evictors = EvictorStates(engines) if engines is not None else None
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.engine_client = SimpleNamespace(errored=True, is_running=False)
    app.state.server = SimpleNamespace(should_exit=False)

    @app.get("/metrics")
    async def metrics() -> str:
        return generate_latest().decode()

    lifecycle = Lifecycle()
    lifecycle.serve()
    keys = endpoint.api_keys(SimpleNamespace(api_key=[key] if key else None))
    evictors = app.state.metok_evictors
    endpoint.install(app, lifecycle, ServerSettings(), MediaLimits(), keys=keys, evictors=evictors)
    return app


def session(app: FastAPI, steps: Callable[[httpx.AsyncClient], Any]) -> Any:
    """Run `steps` with a client of `app`, all in one event loop."""

    async def main() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await steps(client)

    return asyncio.run(main())


def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    async def steps(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(path, headers=headers)

    response: httpx.Response = session(app, steps)
    return response


class TestMetrics:
    def test_engines_add_up_and_workers_of_one_do_not(self) -> None:
        before = metric("metok_kv_blocks_freed_total")
        own = state_of(5, metok_a=[4, 2], plain=[9, 9])
        app = app_for(Engines([own, own], [None, state_of(2, metok_b=[1, 1])]))
        text = get(app, "/metrics").text
        assert "metok_kv_blocks_held 8.0" in text
        assert "metok_prefix_records 4.0" in text
        assert metric("metok_kv_blocks_freed_total") == before + 7

    def test_the_counter_never_goes_down_and_the_gauge_does(self) -> None:
        before = metric("metok_kv_blocks_freed_total")
        engines = Engines([state_of(5, metok_a=[4, 2])])
        app = app_for(engines)
        values = []
        for freed in (5, 5, 4, 9):
            engines.answers = [[state_of(freed)]]
            get(app, "/metrics")
            values.append(metric("metok_kv_blocks_freed_total") - before)
        assert values == [5, 5, 5, 9]
        assert metric("metok_kv_blocks_held") == 0

    def test_a_busy_engine_gets_one_call_and_does_not_delay_a_scrape(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evictor_state, "SCRAPE_WAIT_S", 0.05)
        engines = Engines([state_of(0, metok_a=[3, 3])])
        app = app_for(engines)

        async def steps(client: httpx.AsyncClient) -> None:
            await client.get("/metrics")
            engines.free.clear()
            engines.answers = [[state_of(0, metok_a=[1, 0])]]
            started = time.monotonic()
            for _ in range(3):
                response = await client.get("/metrics")
                assert response.status_code == 200
                assert metric("metok_kv_blocks_held") == 6, "the last known value"
            assert time.monotonic() - started < 5
            assert engines.calls == 2
            engines.free.set()
            await asyncio.sleep(0.05)
            assert metric("metok_kv_blocks_held") == 1, "a late answer still counts"

        session(app, steps)

    @pytest.mark.parametrize("error", [RuntimeError("shutting down"), EngineDeadError()])
    def test_a_failed_call_does_not_fail_a_scrape(self, error: Exception) -> None:
        engines = Engines()
        engines.answers = error
        response = get(app_for(engines), "/metrics")
        assert response.status_code == 200
        assert engines.calls == 1

    @pytest.mark.parametrize("path", ["/health/ready", "/v1/models", "/metrics-of-others"])
    def test_only_a_scrape_calls_the_engine(self, path: str) -> None:
        engines = Engines([state_of(1)])
        app = app_for(engines)
        app.state.metok_lifecycle = Lifecycle()
        get(app, path)
        assert engines.calls == 0

    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            (http_scope("/metrics", method="GET"), True),
            (http_scope("/metrics/", method="GET"), True),
            (http_scope("/api/metrics", method="GET", root_path="/api"), True),
            (http_scope("/metrics", method="OPTIONS"), False),
            ({"type": "websocket", "path": "/metrics"}, False),
        ],
    )
    def test_what_a_scrape_is(self, scope: Any, expected: bool) -> None:
        assert is_scrape(scope) is expected


class TestRoute:
    def test_the_state_of_every_engine(self) -> None:
        first, second = state_of(5, metok_a=[4, 2], plain=[9, 9]), state_of(2)
        content = get(app_for(Engines([first], [second])), "/metok/books").json()
        assert content == {
            "engines": [{**first, "held_blocks": 6}, {**second, "held_blocks": 0}],
        }

    def test_404_without_an_evictor(self) -> None:
        response = get(app_for(None), "/metok/books")
        assert response.status_code == 404
        assert "stages 2 and 3 are off" in response.json()["error"]["message"]

    @pytest.mark.parametrize("staged", [True, False])
    def test_it_needs_the_api_key(self, staged: bool) -> None:
        app = app_for(Engines([state_of(0)]) if staged else None, key="secret")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = get(app, "/metok/books", **headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "API key" in response.json()["error"]["message"]
        right = get(app, "/metok/books", Authorization="Bearer secret")
        assert right.status_code == (200 if staged else 404)

    def test_a_key_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_API_KEY", "of the environment")
        assert envs.VLLM_API_KEY == "of the environment"
        app = app_for(Engines([state_of(0)]))
        assert get(app, "/metok/books").status_code == 401
        authorization = "Bearer of the environment"
        assert get(app, "/metok/books", Authorization=authorization).status_code == 200

    def test_a_busy_engine_is_503(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evictor_state, "DEBUG_WAIT_S", 0.05)
        engines = Engines([state_of(0)])
        engines.free.clear()
        response = get(app_for(engines), "/metok/books")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert "middle of a step" in response.json()["error"]["message"]

    def test_a_dead_engine_is_named(self) -> None:
        engines = Engines()
        engines.answers = EngineDeadError()
        response = get(app_for(engines), "/metok/books")
        assert response.status_code == 503
        assert "engine has stopped" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("stages", "is_read"), [((1,), False), ((1, 2), True), ((3,), True), ((), False)]
)
def test_the_evictor_is_read_with_stages_2_or_3(stages: tuple[int, ...], is_read: bool) -> None:
    plugin = endpoint.MetokEndpoint()
    plugin.lifecycle = Lifecycle()
    plugin._app = app = FastAPI()
    settings = METokConfig(stages=stages).to_dict()
    model = SimpleNamespace(hf_config=SimpleNamespace(metok=settings), architecture="A")
    config = SimpleNamespace(additional_config={"metok": settings}, shutdown_timeout=1)
    client = SimpleNamespace(model_config=model, vllm_config=config, shutdown=None, errored=False)
    asyncio.run(plugin.init_state(client, app.state, None))
    assert (app.state.metok_evictors is not None) is is_read
