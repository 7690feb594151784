"""Companions of torch that were built for another torch do not stop us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from metok_vllm.torch_shims import hide_unloadable

FRESH_PROCESS = """
import sys
from metok_vllm.torch_shims import ensure_torchvision_ops
ensure_torchvision_ops()
assert not ensure_torchvision_ops(), "a second call has nothing to do"
import torchvision.transforms.v2
from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
for name in ("torchaudio", "torchcodec"):
    try:
        __import__(name)
    except ImportError:
        pass
"""


def test_processors_can_be_imported_in_a_fresh_process() -> None:
    run = subprocess.run([sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_import_hook_that_calls_it_again_does_not_undo_it() -> None:
    hook = """
import importlib.abc, sys
from metok_vllm.torch_shims import ensure_torchvision_ops
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            ensure_torchvision_ops()
# The only hook: calls nested twice would repair what one nested call breaks.
others = [finder for finder in sys.meta_path if type(finder).__module__ != "metok_vllm.startup"]
sys.meta_path[:] = [Hook(), *others]
ensure_torchvision_ops()
import torchvision.transforms.v2
"""
    run = subprocess.run([sys.executable, "-c", hook], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        ("raise OSError('libcudart.so.13: cannot open shared object file')", True),
        ("raise RuntimeError('operator does not exist')", True),
        ("raise ImportError('needs another package')", False),
        ("ready = True", False),
    ],
)
def test_only_packages_that_break_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, hidden: bool
) -> None:
    (tmp_path / "metok_companion.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "metok_companion", raising=False)
    assert hide_unloadable("metok_companion") is hidden
    assert hide_unloadable("metok_companion") is hidden
    if hidden:
        with pytest.raises(ImportError):
            import metok_companion  # type: ignore[import-not-found]  # noqa: F401
    sys.modules.pop("metok_companion", None)


def test_absent_package_is_left_alone() -> None:
    assert not hide_unloadable("metok_no_such_package")
    assert "metok_no_such_package" not in sys.modules
