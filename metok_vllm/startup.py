"""Repairs every process of an environment where torchvision and torch do not match.

`tools/install.py` puts a line that imports this module into a `.pth` file of an environment where
`import torchvision` fails (PyPI's CUDA build beside a CPU torch). vLLM starts processes that import
torchvision before any plugin is loaded, so a plugin would come too late. Nothing heavy may be
imported here: it runs whenever Python starts.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

IMPORTERS = ("torchvision", "transformers", "vllm")


class RepairFinder(importlib.abc.MetaPathFinder):
    """Calls the repair just before the first import of something that needs it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Always None: the real finders go on once the repair is done."""
        if fullname in IMPORTERS:
            sys.meta_path.remove(self)
            from metok_vllm.torch_shims import ensure_torchvision_ops

            ensure_torchvision_ops()
        return None


if not any(isinstance(finder, RepairFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, RepairFinder())
