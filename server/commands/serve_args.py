"""The command line of `metok serve`: vLLM's own, plus METok's flags and defaults.

METok's settings are passed on in vLLM's `additional_config`, as far as they are given, and limits
in the environment, which every process inherits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from metok_vllm.config import CONFIG_FILE, METokConfig
from metok_vllm.config.environment import PREFIX as METOK_ENV
from metok_vllm.config.environment import flag, help_of, read_flags, unknown_variables
from metok_vllm.errors import ConfigError
from metok_vllm.kernels.backend import VARIABLE as KERNELS
from metok_vllm.processes.lifetime import WATCH_VARIABLE
from metok_vllm.server.settings import ENV_PREFIX as SERVER_ENV
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import ENV_PREFIX as MEDIA_ENV
from metok_vllm.video.limits import MediaLimits

logger = logging.getLogger("vllm.metok")

DESCRIPTION = (
    "vLLM's OpenAI-compatible server with METok on. Every flag of 'vllm serve' is accepted."
)
SHUTDOWN_TIMEOUT_S = 30
DEMO_DEFAULTS = {
    "served_model_name": ["metok-demo"],
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 16384,
    # A dense prompt of 128 frames (2,049 tokens and the text) takes one step. Small blocks show the
    # savings on short prompts too.
    "max_num_batched_tokens": 8192,
    "block_size": 32,
}
DEMO_KV_GIB = "1"


def parse(argv: Sequence[str]) -> Namespace:
    """Arguments for vLLM. Sets the environment. Exits with status 2 on a bad command line."""
    demo = "--demo" in argv
    words = [word for word in argv if word != "--demo"]
    for index, word in enumerate(words):
        if word.startswith("--config="):
            # vLLM reads the file only if its name is a separate word.
            words[index : index + 1] = ["--config", word.removeprefix("--config=")]
    if demo:
        from metok_vllm.demo import MODEL_DIR

        words.insert(0, str(MODEL_DIR))
    top, parser = _parsers(demo)
    args: Namespace = top.parse_args(["serve", *words])
    if args.model_tag is not None:
        args.model = args.model_tag
    elif not args.headless and "--config" not in words:
        parser.error("say which model to serve, or --demo for the embedded one")
    try:
        _apply_metok(args, demo)
    except ConfigError as error:
        parser.error(str(error))
    return args


def _parsers(demo: bool) -> tuple[Any, Any]:
    top = FlexibleArgumentParser(prog="metok")
    commands = top.add_subparsers(dest="subparser")
    parser = commands.add_parser(
        "serve", description=DESCRIPTION, usage="metok serve MODEL [options] (or --demo)"
    )
    make_arg_parser(parser)
    # `usage.prompt_tokens_details.cached_tokens` says what the next question did not compute.
    parser.set_defaults(shutdown_timeout=SHUTDOWN_TIMEOUT_S, enable_prompt_tokens_details=True)
    if demo:
        parser.set_defaults(**DEMO_DEFAULTS)
    group: Any = parser.add_argument_group("METok", "Compression, and limits for clients.")
    group.add_argument(
        "--demo", action="store_true", default=SUPPRESS, help="serve the embedded demo model"
    )
    group.add_argument(
        "--metok-config", metavar="FILE", default=SUPPRESS, help="YAML file with METok settings"
    )

    def add_flag(name: str, field: dataclasses.Field[Any], default: object) -> None:
        text = f"{help_of(field)} [{default}]"
        flag = f"--metok-{name.replace('_', '-')}"
        group.add_argument(flag, metavar="VALUE", default=SUPPRESS, help=text)

    for field in dataclasses.fields(METokConfig):
        add_flag(field.name, field, json.dumps(field.default))
    for field in dataclasses.fields(MediaLimits):
        add_flag(f"media-{field.name}", field, field.default)
    for field in dataclasses.fields(ServerSettings):
        add_flag(field.name.removesuffix("_s"), field, field.default)
    return top, parser


def _apply_metok(args: Namespace, demo: bool) -> None:
    """Move METok's flags from `args` to the environment and `additional_config`.

    Raises ConfigError.
    """
    names = [field.name for field in dataclasses.fields(METokConfig)]
    texts = {name: _pop(args, f"metok_{name}") for name in names}
    given = read_flags(METokConfig, texts, "--metok-")
    for field in dataclasses.fields(MediaLimits):
        _export(MEDIA_ENV + field.name, _pop(args, f"metok_media_{field.name}"))
    for field in dataclasses.fields(ServerSettings):
        _export(SERVER_ENV + field.name, _pop(args, f"metok_{field.name.removesuffix('_s')}"))
    limits = MediaLimits.from_env()
    ServerSettings.from_env()
    flag(WATCH_VARIABLE, True)
    _warn(limits)

    extra = dict(args.additional_config or {})
    config_file = _pop(args, "metok_config")
    values = dict(extra.get("metok") or {})
    if config_file is not None:
        values.pop(CONFIG_FILE, None)  # the flag replaces it
    elif demo and CONFIG_FILE not in values:
        from metok_vllm import demo as embedded

        config_file = embedded.CONFIG_FILE  # its layers and ratios are calibrated
    # Only what is given: presets depend on the model, which vLLM reads later.
    settings = METokConfig.given({**values, **given}, config_file)
    if demo:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", DEMO_KV_GIB)
        if settings.get("alignment_model") is None:
            from metok_vllm.demo import ALIGNMENT_DIR

            settings["alignment_model"] = str(ALIGNMENT_DIR)
    args.additional_config = {**extra, "metok": settings}
    args.limit_mm_per_prompt = {"video": limits.max_videos, **(args.limit_mm_per_prompt or {})}


def _warn(limits: MediaLimits) -> None:
    """Log settings that are likely to be mistakes."""
    classes = {METOK_ENV: METokConfig, MEDIA_ENV: MediaLimits, SERVER_ENV: ServerSettings}
    known = {KERNELS, WATCH_VARIABLE}
    for prefix, settings in classes.items():
        known |= {prefix + field.name.upper() for field in dataclasses.fields(settings)}
    for name, near in unknown_variables(known).items():
        hint = f": {near} is meant?" if near else "."
        logger.warning("The environment variable %s is not a setting of METok%s", name, hint)
    if limits.allow_private_hosts is True:
        logger.warning(
            "Clients can make this server fetch from every private, loopback and link-local "
            "address, on every port. Name the hosts instead: --metok-media-allow-private-hosts "
            "HOST:PORT,..."
        )


def _pop(args: Namespace, name: str) -> Any:
    return vars(args).pop(name, None)


def _export(name: str, value: str | None) -> None:
    if value is not None:
        os.environ[name.upper()] = value
