"""Makes torchvision importable in every process of an environment where it does not match torch.

Where `import torchvision` fails (PyPI's CUDA build beside a CPU torch), `tools/install.py` writes a
`.pth` file that imports this module. A plugin would be too late: vLLM's processes import
torchvision before plugins load. Imports here must be light, because every start of Python runs it.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

IMPORTERS = ("torchvision", "transformers", "vllm")


class RepairFinder(importlib.abc.MetaPathFinder):
    """Applies the shims just before the first import that needs them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Always None, so the next finders do the import."""
        if fullname in IMPORTERS:
            sys.meta_path.remove(self)
            from metok_vllm.torch_shims import ensure_torchvision_ops

            ensure_torchvision_ops()
        return None


if not any(isinstance(finder, RepairFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, RepairFinder())
