"""`metok serve`: vLLM's OpenAI server with METok on.

vLLM builds and serves the engine and the app. This adds answers while the engine loads, and ends
all child processes when the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError
from metok_vllm.errors import ConfigError
from metok_vllm.processes import lifetime
from metok_vllm.server.commands import serve_process
from metok_vllm.server.middleware.lifecycle import LIFECYCLE
from metok_vllm.server.vllm_contract import ATTRIBUTES, SIGNATURES
from metok_vllm.vllm_contract import attributes, check, methods

# Time for uvicorn to close its connections, and for threads to end after that.
CLOSE_S = 5
THREADS_EXIT_S = 5.0


def run(argv: Sequence[str]) -> int:
    """Serve until a signal; returns the exit status. `argv` is what follows `metok serve`.

    Raises CommandError if the installed vLLM or the loaded model does not fit METok.
    """
    serve_process.prepare_environment()
    importlib.import_module("vllm")  # if it is missing, the command line says how to install it
    problems = check({**methods.SIGNATURES, **SIGNATURES}, {**attributes.ATTRIBUTES, **ATTRIBUTES})
    if problems:
        raise CommandError("METok cannot run with this vLLM: " + "; ".join(problems))

    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    from metok_vllm.server.commands import serve_args

    cli_env_setup()
    args = serve_args.parse(argv)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    lifetime.make_rpc_folder()
    serve_process.return_large_blocks()
    if _one_process(args):
        return _serve_and_exit(args)
    try:
        # Several API servers, headless or gRPC use vLLM's launcher, without answers while loading.
        ServeSubcommand.cmd(args)
    finally:
        lifetime.remove_rpc_folder()
    return 0


def _serve_and_exit(args: Namespace) -> int:
    status = 1
    try:
        status = _serve_here(args)
    finally:
        threading.Thread(target=_exit_soon, args=(status,), daemon=True).start()
    return status


def _exit_soon(status: int) -> None:
    # Python waits for all threads of a pool, and a name lookup or a file may block one of them.
    time.sleep(THREADS_EXIT_S)
    os._exit(status)


def _serve_here(args: Namespace) -> int:
    import uvloop
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.utils.system_utils import decorate_logs

    decorate_logs("APIServer", skip_if_decorated=True)
    # vLLM's handlers replace these once the server is up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_while_loading)
    try:
        address, sock = setup_server(args, reuse_port=False)
        print(_banner(address, args), flush=True)  # noqa: T201 - for people
        uvloop.run(_serve(address, sock, args))
    except ConfigError as error:
        # Only the loaded model shows that METok does not support it.
        raise CommandError(str(error)) from error
    finally:
        serve_process.end_children()
    return 1 if LIFECYCLE.failed else 0


def _exit_while_loading(number: int, _frame: Any) -> None:
    # The main thread waits for the engine inside zmq, which would drop an exception. A regular exit
    # would wait many seconds for the sockets of an engine that has not started.
    serve_process.end_children()
    with contextlib.suppress(RuntimeError):  # the signal may interrupt a write
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(128 + number)


async def _serve(address: str, sock: socket.socket, args: Namespace) -> None:
    """vLLM's run_server_worker, with a LoadingResponder on the socket until it serves."""
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker

    from metok_vllm.server.api.sockets import LoadingResponder, tls_options

    responder = LoadingResponder(sock, **tls_options(args))
    responder.start()
    LIFECYCLE.before_serving = responder.stop

    async def hand_over() -> None:
        # The endpoint plugin has usually stopped it already.
        await asyncio.to_thread(responder.stop)

    try:
        # Requests are drained before uvicorn closes its connections, so CLOSE_S can be short.
        await run_server_worker(
            address, sock, args, callback_notify=hand_over, timeout_graceful_shutdown=CLOSE_S
        )
    finally:
        responder.stop()


def _one_process(args: Namespace) -> bool:
    if args.headless or args.grpc or args.data_parallel_multi_port_external_lb:
        return False
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        return False
    return int(args.api_server_count or args.data_parallel_size or 1) == 1


def _banner(address: str, args: Namespace) -> str:
    config = METokConfig.from_dict(args.additional_config["metok"])
    name = (args.served_model_name or [args.model])[0]
    if not config.enabled:
        what = "METok off unless a request enables it"
    else:
        # Stages that nobody chose depend on the model, which vLLM reads later.
        chosen = "stages" in args.additional_config["metok"]
        listed = ", ".join(str(stage) for stage in config.stages) or "none"
        stages = f"stages {listed}, " if chosen else ""
        what = f"METok preset {config.preset}, {stages}{config.num_events} events"
    ready = f"{address}/health/ready answers 200 once it serves"
    return f"metok: {name} on {address}, {what}; loading, {ready}"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
