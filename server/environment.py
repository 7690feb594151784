"""vLLM's environment for `metok serve`. Imports nothing of vLLM: it must be set before that."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import MutableMapping

from metok_vllm.processes import parent_watch

PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
OUR_PLUGINS = ("metok", "metok_http")
DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MEDIA_CONNECTOR": "metok",
    "VLLM_VIDEO_LOADER_BACKEND": "metok",
    parent_watch.VARIABLE: "1",
}


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Fill in what METok needs; what the user set stays."""
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    environ["VLLM_PLUGINS"] = plugin_list(environ.get("VLLM_PLUGINS"))


def plugin_list(current: str | None) -> str:
    """`VLLM_PLUGINS` with ours in it. Unset means all of them, which has to be spelled out then."""
    if current is None:
        entries = (importlib.metadata.entry_points(group=group) for group in PLUGIN_GROUPS)
        names = [entry.name for group in entries for entry in group]
    else:
        names = [name for name in current.split(",") if name]
    return ",".join(dict.fromkeys([*names, *OUR_PLUGINS]))
