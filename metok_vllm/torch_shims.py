"""Shims for torchvision, torchaudio and torchcodec that were compiled for another torch.

PyPI's packages are CUDA builds, whose compiled parts do not load beside a CPU torch. torchvision's
import fails with `operator torchvision::nms does not exist`. The other two raise OSError, where
vLLM and transformers expect ImportError. This project uses none of those compiled parts.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from pathlib import Path
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library's definitions live as long as the object.
_library: torch.library.Library | None = None


def ensure_torchvision_ops() -> bool:
    """Make vLLM and the Hugging Face processors importable beside any torch.

    Declares the operator schemas (without kernels) that torchvision's import needs, and hides
    torchaudio and torchcodec, each only where its compiled part does not load. Call it before the
    first import of vLLM or a processor; further calls do nothing. True if schemas were declared.
    """
    global _library
    if torch.version.cuda is not None or torch.version.hip is not None:
        return False  # beside a GPU build of torch, PyPI's packages match
    hide_unloadable("torchaudio")
    hide_unloadable("torchcodec")
    if "torchvision" in sys.modules or _library is not None:
        return False
    # importlib.util.find_spec would call the import hook that calls this function.
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None or _compiled_operators_load(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _library = library
    return True


def hide_unloadable(package: str) -> bool:
    """Turn OSError at `import package` into "not installed" for this process; True if hidden."""
    modules: dict[str, Any] = sys.modules
    if package in modules:
        return modules[package] is None  # hidden by an earlier call
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    except (OSError, RuntimeError):
        modules[package] = None  # makes `import package` raise ImportError
        return True
    return False


def _compiled_operators_load(package: Path) -> bool:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = package / f"_C{suffix}"
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError:
                return False
            return True
    return False
