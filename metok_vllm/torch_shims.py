"""Work-arounds for companions of torch that were compiled for another torch.

PyPI's torchvision, torchaudio and torchcodec are CUDA builds. Beside a CPU torch their compiled
parts cannot be loaded: torchvision's import ends in `operator torchvision::nms does not exist`,
the other two raise OSError, where vLLM and transformers expect ImportError for "not there".
Nothing in this project calls those compiled parts.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library's definitions live as long as the object.
_library: torch.library.Library | None = None


def ensure_torchvision_ops() -> bool:
    """Make vLLM and the Hugging Face processors importable beside any torch.

    Declares the operator schemas (no kernels) that torchvision's import insists on, and hides
    torchaudio and torchcodec, each only where its compiled part cannot be loaded. Call before the
    first import of vLLM or a processor; calling again is free. True if schemas were declared now.
    """
    global _library
    if torch.version.cuda is not None or torch.version.hip is not None:
        return False  # builds that fit are the rule where torch is the GPU build
    hide_unloadable("torchaudio")
    hide_unloadable("torchcodec")
    if "torchvision" in sys.modules or _library is not None:
        return False
    # Not importlib.util.find_spec: an import hook that calls this function would call it again.
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
    # None is what an earlier call left here; anything else was imported successfully.
    if package in sys.modules:
        return sys.modules[package] is None
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    except (OSError, RuntimeError):
        # Python's own way to say that a module cannot be had.
        sys.modules[package] = None  # type: ignore[assignment]
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
