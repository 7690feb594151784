from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from metok_vllm.server.middleware.lifecycle import (
    ENGINE_EXIT_S,
    Lifecycle,
    Phase,
    drain_before,
    watch_engine,
)


def nothing() -> None:
    pass


def test_phases() -> None:
    lifecycle = Lifecycle()
    seen = [lifecycle.phase]
    for step in (lifecycle.serve, lambda: lifecycle.drain(0), lifecycle.serve):
        step()
        seen.append(lifecycle.phase)
    assert seen == [Phase.LOADING, Phase.SERVING, Phase.DRAINING, Phase.DRAINING]


def test_before_serving_runs_while_loading() -> None:
    lifecycle = Lifecycle()
    seen: list[Phase] = []
    lifecycle.before_serving = lambda: seen.append(lifecycle.phase)
    lifecycle.serve()
    assert seen == [Phase.LOADING]


def test_shutdown_waits_for_the_requests_in_flight() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter()
    order: list[str] = []

    def finish() -> None:
        time.sleep(0.1)
        order.append("answered")
        lifecycle.leave()

    thread = threading.Thread(target=finish)
    thread.start()
    drain_before(lambda timeout: order.append("shutdown"), lifecycle, 10, nothing)(timeout=10)
    thread.join()
    assert order == ["answered", "shutdown"]
    assert not lifecycle.failed


def test_shutdown_continues_after_the_drain_timeout() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter()
    given: list[float | None] = []
    started = time.monotonic()
    drain_before(lambda timeout: given.append(timeout), lifecycle, 0.1, nothing)(timeout=0.1)
    assert 0.1 <= time.monotonic() - started < 5
    assert given == [ENGINE_EXIT_S]


def test_a_second_shutdown_does_not_drain_again() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter()
    shutdown = drain_before(lambda timeout: None, lifecycle, 0.1, nothing)
    shutdown(timeout=0.1)
    started = time.monotonic()
    shutdown(timeout=0.1)
    assert time.monotonic() - started < 0.05


@pytest.mark.parametrize("timeout", [0, None])
def test_vllm_s_value_for_no_timeout_is_kept(timeout: float | None) -> None:
    given: list[float | None] = []
    drain_before(lambda timeout: given.append(timeout), Lifecycle(), 0, nothing)(timeout=timeout)
    assert given == [timeout]


def test_the_event_loop_is_never_blocked() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter()

    async def main() -> float:
        started = time.monotonic()
        drain_before(lambda timeout: None, lifecycle, 30, nothing)(timeout=30)
        return time.monotonic() - started

    assert asyncio.run(main()) < 5
    assert lifecycle.failed


def test_decoding_ends_after_the_drain_and_before_the_engine() -> None:
    order: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.enter()
    shutdown = drain_before(
        lambda timeout: order.append("engine"), lifecycle, 0.1, lambda: order.append("work")
    )
    shutdown(timeout=0.1)
    assert order == ["work", "engine"]


def test_a_dead_engine_ends_decoding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metok_vllm.server.middleware.lifecycle.WATCH_S", 0.01)
    engine = SimpleNamespace(errored=False)
    ended: list[bool] = []

    async def main() -> None:
        task = asyncio.ensure_future(watch_engine(engine, lambda: ended.append(True)))
        await asyncio.sleep(0.05)
        assert ended == []
        engine.errored = True
        await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert ended == [True]
