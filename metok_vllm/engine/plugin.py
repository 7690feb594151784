"""The `vllm.general_plugins` entry point: called in every vLLM process, more than once in some.

Loading it only registers: models under names of their own, a video loader, a hook on the
configuration. Nothing changes for a server that does not set `additional_config["metok"]`.
"""

from __future__ import annotations

from metok_vllm.compat import ensure_torchvision_ops

_registered = False


def register() -> None:
    """Register METok with vLLM. Raises RuntimeError naming what does not fit this vLLM."""
    global _registered
    if _registered:
        return
    ensure_torchvision_ops()
    from metok_vllm.engine import compat

    problems = compat.check()
    if problems:
        raise RuntimeError("METok cannot run with this vLLM:\n  " + "\n  ".join(problems))

    from metok_vllm.engine import config_hook, video_loader

    config_hook.register()
    video_loader.register()
    _registered = True
