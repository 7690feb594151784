"""`metok serve`: vLLM's OpenAI server with METok on.

vLLM builds the engine and the app and serves them. Around that: answers while the engine loads,
and no process left behind when the server ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import psutil

from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError
from metok_vllm.engine import vllm_contract as compat
from metok_vllm.errors import ConfigError
from metok_vllm.processes import rpc_folder
from metok_vllm.server import allocator
from metok_vllm.server.middleware.lifecycle import LIFECYCLE
from metok_vllm.server.vllm_contract import SIGNATURES

logger = logging.getLogger("vllm.metok")

CLOSE_S = 5
LEFTOVER_S = 5.0
LOOK_AGAIN_S = 0.2


def run(argv: Sequence[str]) -> int:
    """Serve until told to stop; the exit status. `argv` is what follows `metok serve`."""
    # vLLM reads its environment while it is imported.
    from metok_vllm.server import environment

    environment.prepare()
    importlib.import_module("vllm")  # not there at all: the command line says how to get it
    problems = compat.check({**compat.SIGNATURES, **SIGNATURES})
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
    rpc_folder.make()
    allocator.return_large_blocks()
    if _one_process(args):
        return _serve_to_the_end(args)
    try:
        # Several API servers, headless or gRPC: vLLM's own launcher, without the loading answers.
        ServeSubcommand.cmd(args)
    finally:
        rpc_folder.remove()
    return 0


def _serve_to_the_end(args: Namespace) -> int:
    status = 1
    try:
        status = _serve_here(args)
    finally:
        threading.Thread(target=_end_at_last, args=(status,), daemon=True).start()
    return status


def _end_at_last(status: int) -> None:
    # Python waits for every thread of a pool, and one may look up a name or read a file that does
    # not answer.
    time.sleep(LEFTOVER_S)
    os._exit(status)


def _serve_here(args: Namespace) -> int:
    import uvloop
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.utils.system_utils import decorate_logs

    decorate_logs("APIServer", skip_if_decorated=True)
    # vLLM's handlers replace these once the server is up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_while_loading)
    try:
        address, sock = setup_server(args, reuse_port=False)
        print(_banner(address, args), flush=True)  # noqa: T201 - the one line for people
        uvloop.run(_serve(address, sock, args))
    except ConfigError as error:
        # The command line was sound; only the loaded model shows that it cannot be served so.
        raise CommandError(str(error)) from error
    finally:
        _end_leftovers()
    return 1 if LIFECYCLE.failed else 0


def _leave_while_loading(number: int, _frame: Any) -> None:
    # An exception would not do: the main thread waits for the engine inside zmq, which drops it.
    # There is nothing to save yet, and the sockets of an engine that never came up would hold the
    # interpreter for many seconds.
    _end_leftovers()
    with contextlib.suppress(RuntimeError):  # the signal may have come in the middle of a write
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(128 + number)


async def _serve(address: str, sock: socket.socket, args: Namespace) -> None:
    """vLLM's run_server_worker, with a responder on the socket until the server is up."""
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker

    from metok_vllm.server.api.loading import LoadingResponder, tls_options

    responder = LoadingResponder(sock, **tls_options(args))
    responder.start()
    LIFECYCLE.before_serving = responder.stop

    async def hand_over() -> None:
        await asyncio.to_thread(responder.stop)

    try:
        # The endpoint plugin has stopped the responder by now, if vLLM could load it; uvicorn
        # calls this once it accepts connections.
        # By the time that uvicorn closes its connections, requests had their time to finish.
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
        what = "METok off unless a request asks for it"
    else:
        stages = ", ".join(str(stage) for stage in config.stages) or "none"
        what = f"METok preset {config.preset}, stages {stages}, {config.num_events} events"
    return f"metok: {name} on {address}, {what}; loading, ready when {address}/health/ready says so"


def _end_leftovers() -> None:
    """End what is still running of our processes: idle video decoders, and whatever hangs."""
    told: set[psutil.Process] = set()
    alive = _descendants()
    deadline = time.monotonic() + LEFTOVER_S
    while alive and time.monotonic() < deadline:
        for process in alive - told:
            _signal(process, signal.SIGTERM)
        told |= alive
        # An engine that is still starting starts its workers meanwhile.
        alive = set(psutil.wait_procs(alive, timeout=LOOK_AGAIN_S)[1]) | _descendants()
    for process in alive:
        _signal(process, signal.SIGSTOP)  # so that nothing is started between look and kill
    alive |= _descendants()
    for process in alive:
        logger.warning("Process %s did not end when told to and is killed.", process.pid)
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=LEFTOVER_S)
    rpc_folder.remove()


def _descendants() -> set[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return {process for process in found if not _is_resource_tracker(process)}


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # Checks that the process is still the one it was.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_resource_tracker(process: psutil.Process) -> bool:
    # It ends on its own, after it has cleaned up what we leave in shared memory.
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return True


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
