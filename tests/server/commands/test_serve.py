from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from typing import Any

import pytest
from vllm.entrypoints.launchers import launcher
from vllm.utils import system_utils

from metok_vllm.console import CommandError
from metok_vllm.errors import ConfigError
from metok_vllm.server.commands import serve, serve_process


def test_an_unsupported_model_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[bool] = []

    async def refused(*_: Any) -> None:
        raise ConfigError("METok does not support this model")

    def bound(_args: Namespace, reuse_port: bool) -> tuple[str, Any]:
        assert not reuse_port
        return "http://here", None

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(system_utils, "decorate_logs", lambda *_, **__: None)
    monkeypatch.setattr(launcher, "setup_server", bound)
    monkeypatch.setattr(serve, "_banner", lambda *_: "")
    monkeypatch.setattr(serve, "_serve", refused)
    monkeypatch.setattr(serve_process, "end_children", lambda: ended.append(True))
    with pytest.raises(CommandError, match="does not support") as caught:
        serve._serve_here(Namespace())
    assert caught.value.status == 1
    assert ended == [True]


@pytest.mark.slow
def test_the_process_exits_despite_a_blocked_thread() -> None:
    """Python joins the threads of every pool before it ends."""
    program = (
        "import threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from metok_vllm.server.commands import serve\n"
        "serve._serve_here = lambda args: 3\n"
        "serve.THREADS_EXIT_S = 0.5\n"
        "ThreadPoolExecutor().submit(time.sleep, 600)\n"
        "raise SystemExit(serve._serve_and_exit(None))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "METok preset balanced, 5 events;"),
        ({"stages": [1], "preset": "max"}, "METok preset max, stages 1, 5 events;"),
        ({"enabled": False}, "METok off unless a request enables it;"),
    ],
)
def test_the_first_line_says_only_what_is_known(settings: dict[str, Any], said: str) -> None:
    """Which stages run by default depends on the model, whose configuration is read later."""
    args = Namespace(additional_config={"metok": settings}, served_model_name=None, model="a/model")
    assert said in serve._banner("http://here", args)
