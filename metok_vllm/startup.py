"""Lets torchvision be imported in every process of an environment whose builds do not match.

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


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declares the operators that torchvision misses just before its first import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Always None: the real finders go on once the operators are there."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from metok_vllm.compat import ensure_torchvision_ops

            ensure_torchvision_ops()
        return None


if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, TorchvisionFinder())
