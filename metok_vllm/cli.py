"""The `metok` command: one parser, and one module per subcommand, imported when it is called.

`metok doctor` must run even if vLLM or torch are broken, so neither is imported here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from metok_vllm.console import CommandError, complain
from metok_vllm.errors import MetokError

# Each module has add_arguments(parser), and run(arguments), which returns the exit status.
COMMANDS = {
    "chat": ("metok_vllm.server.commands.chat", "ask a running server about a video"),
    "inspect": (
        "metok_vllm.server.inspect.command",
        "show the events of a video and their relevance to a question",
    ),
    "doctor": (
        "metok_vllm.server.commands.doctor",
        "check the installation and say what is missing or broken",
    ),
    "demo": (
        "metok_vllm.server.commands.demo",
        "serve the demo model and compare dense with METok",
    ),
    "bench": ("metok_vllm.benchmarks.commands.bench", "measure throughput and latency under load"),
    "calibrate": (
        "metok_vllm.benchmarks.commands.calibrate",
        "find the layers at which a model can drop its visual tokens",
    ),
}
SERVE_HELP = "vLLM's OpenAI server with METok (accepts every flag of `vllm serve`)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 success, 1 failure, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except CommandError as error:
        complain(str(error))
        return error.status
    except MetokError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of the pipe is closed; without this, flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    wanted = next((a for a in arguments if a in COMMANDS), None)
    parsed = _parser(wanted).parse_args(arguments)
    module = importlib.import_module(COMMANDS[parsed.command][0])
    status: int = module.run(parsed)
    return status


def _serve(arguments: list[str]) -> int:
    try:
        serve = importlib.import_module("metok_vllm.server.commands.serve")
        status: int | None = serve.run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "vllm":
            raise
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error
    return status or 0


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metok", description="Answers questions about long videos with fewer tokens."
    )
    version = f"metok-vllm {metadata.version('metok-vllm')}"
    parser.add_argument("-V", "--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help=SERVE_HELP)
    for name, (module, help_text) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name == wanted:
            importlib.import_module(module).add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
