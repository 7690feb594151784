"""The `vllm.general_plugins` entry point: called in every vLLM process, more than once in some.

Loading it only registers: models under names of their own, a video loader, a hook on the
configuration. Nothing changes for a server that does not set `additional_config["metok"]`, but
that processes of `metok serve` end with their parent: its environment asks for that.
"""

from __future__ import annotations

import logging

from metok_vllm.config.environment import flag
from metok_vllm.processes import parent_watch
from metok_vllm.torch_shims import ensure_torchvision_ops

logger = logging.getLogger("vllm.metok")

_registered = False


def register() -> None:
    """Register METok with vLLM.

    On a vLLM that does not fit, a server that asks for METok ends with a RuntimeError that names
    what changed; every other server starts as if METok were not installed.
    """
    global _registered
    if _registered:
        return
    _registered = True
    if flag(parent_watch.VARIABLE, False):
        parent_watch.watch_parent()
    ensure_torchvision_ops()
    from metok_vllm import vllm_contract

    problems = vllm_contract.check()
    if problems:
        logger.error("METok is installed but cannot run here: %s", "; ".join(problems))

    from metok_vllm.engine import config_hook, video_loader
    from metok_vllm.engine.kv_cache import evictor

    config_hook.register(problems)
    if not problems:
        video_loader.register()
        evictor.register()
