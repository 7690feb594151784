"""The `vllm.general_plugins` entry point: called in every vLLM process, more than once in some.

It registers models under names of their own, a video loader and a hook on the configuration. A
server without `additional_config["metok"]` does not change. Processes of `metok serve` end with
their parent, as its environment says.
"""

from __future__ import annotations

import logging

from metok_vllm.config.environment import flag
from metok_vllm.processes import lifetime
from metok_vllm.torch_shims import ensure_torchvision_ops

logger = logging.getLogger("vllm.metok")

_registered = False


def register() -> None:
    """Register METok with vLLM.

    On a vLLM that does not fit, a server with METok ends with a RuntimeError that names what
    changed; any other server starts as if METok were not installed.
    """
    global _registered
    if _registered:
        return
    _registered = True
    if flag(lifetime.WATCH_VARIABLE, False):
        lifetime.watch_parent()
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
